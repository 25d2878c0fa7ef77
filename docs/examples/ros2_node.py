"""A ROS 2 node: subscribes to images, publishes the best class.

Its parameter `artifact` is the folder that `kdedge export` wrote. This file was not run: ROS 2 was
not there.
"""

import rclpy
from cv_bridge import CvBridge
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

import kdedge


class Classifier(Node):
    """Publishes `class score` on `label` for each message on `image`."""

    def __init__(self) -> None:
        super().__init__("kdedge")
        self.declare_parameter("artifact", "")
        self.model = kdedge.load(self.get_parameter("artifact").value)
        self.bridge = CvBridge()
        self.publisher = self.create_publisher(String, "label", 10)
        self.create_subscription(Image, "image", self.on_image, 1)

    def on_image(self, message: Image) -> None:
        """Classifies one image and publishes the prediction."""
        image = self.bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
        best = self.model(image)
        self.publisher.publish(String(data=f"{best.class_name} {best.score_percent}"))


def main() -> None:
    """Runs the node until it is stopped."""
    rclpy.init()
    rclpy.spin(Classifier())


if __name__ == "__main__":
    main()
