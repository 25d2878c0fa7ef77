"""Rival methods: those of papers that a teacher or student of kdedge is compared with."""
