package harness_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/harness"
)

// What is sent while a relay is cut is lost, on the connections that there are and on new ones; healed, new ones work.
func TestRelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	r := harness.StartRelay(t, l.Addr().String())
	dial := func() net.Conn {
		c, err := net.Dial("tcp", r.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	say := func(c net.Conn) {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(c net.Conn) error {
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	old := dial()
	r.Slow(100 * time.Millisecond)
	began := time.Now()
	if say(old); hear(old) != nil || time.Since(began) < 200*time.Millisecond {
		t.Errorf("answered after %s", time.Since(began))
	}
	r.Slow(0)
	r.Cut()
	late := dial()
	for _, c := range []net.Conn{old, late} {
		say(c)
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if err := hear(c); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("cut, it answers or breaks")
		}
	}
	r.Heal()
	again := dial()
	if say(again); hear(again) != nil {
		t.Error("healed, it does not answer")
	}
	_ = old.SetReadDeadline(time.Time{})
	if hear(old) == nil {
		t.Error("what was lost comes late")
	}
}
