package flock

var Self = self
