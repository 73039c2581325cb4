package port_test

import (
	"net"
	"testing"

	"github.com/paddockvm/paddock/test/port"
)

// Ports are given once, are free, and are none that the kernel would give to a connection.
func TestFree(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := map[int]bool{}
	for range 100 {
		p, err := port.Free()
		if err != nil {
			t.Fatal(err)
		}
		if seen[p] || p < 1024 || p >= 32768 && p >= l.Addr().(*net.TCPAddr).Port {
			t.Errorf("port %d", p)
		}
		seen[p] = true
		taken, err := net.Listen("tcp", port.Addr(p))
		if err != nil {
			t.Errorf("port %d is not free: %v", p, err)
			continue
		}
		defer taken.Close()
	}
}
