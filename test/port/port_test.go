package port_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
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
	for range 250 { // more than a process takes at once
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
		_ = taken.Close()
	}
	again := exec.CommandContext(t.Context(), os.Args[0])
	again.Env = append(os.Environ(), other+"=1")
	out, err := again.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Fields(string(out)) {
		var p int
		if _, err := fmt.Sscan(line, &p); err != nil {
			t.Fatal(err)
		}
		if seen[p] {
			t.Errorf("another process is given the port %d, too", p)
		}
		seen[p] = true
	}
	if len(seen) != 350 {
		t.Errorf("%d ports were given, want 350", len(seen))
	}
}

// other makes this test's binary a process that prints the ports that it is given.
const other = "PADDOCK_TEST_PORTS"

func TestMain(m *testing.M) {
	if os.Getenv(other) == "" {
		os.Exit(m.Run())
	}
	for range 100 {
		p, err := port.Free()
		if err != nil {
			panic(err)
		}
		fmt.Println(p)
	}
}
