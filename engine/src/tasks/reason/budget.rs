//! What limits a task's adapters: parameters, bytes of the bundle, memory of the device; and the largest rank within it.
