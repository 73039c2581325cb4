package main

import (
	"bufio"
	"fmt"
	"os"
)

// defaultMemoryMiB is three quarters of what the host has: the rest is the system's, and Paddock's own.
func defaultMemoryMiB() int {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 1024
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int
		if n, _ := fmt.Sscanf(s.Text(), "MemTotal: %d kB", &kib); n == 1 {
			return kib / 1024 * 3 / 4
		}
	}
	return 1024
}
