package guestagent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	freeport "github.com/paddockvm/paddock/test/port"
)

// serveTCP listens on loopback and gives each connection to serve.
func serveTCP(t *testing.T, serve func(*net.TCPConn)) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return l.Addr().(*net.TCPAddr).Port
}

func dial(t *testing.T, c *client.Client, port int) net.Conn {
	t.Helper()
	conn, err := c.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestDialHalfClose shows that each side's end reaches the other while the other way goes on.
func TestDialHalfClose(t *testing.T) {
	c, _ := process(t)
	big := make([]byte, 3<<20+17) // many windows
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	port := serveTCP(t, func(s *net.TCPConn) { // reads to the end, only then answers, and ends first
		b, err := io.ReadAll(s)
		if err != nil {
			t.Error(err)
		}
		_, _ = s.Write(b)
	})
	conn := dial(t, c, port)
	if _, err := conn.Write(big); err != nil {
		t.Fatal(err)
	}
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("written after the end")
	}

	said := make(chan string, 1)
	port = serveTCP(t, func(s *net.TCPConn) { // ends its side first, and reads on
		must(t, s.CloseWrite())
		b, _ := io.ReadAll(s)
		said <- string(b)
	})
	conn = dial(t, c, port)
	if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
		t.Fatalf("%q, %v", b, err)
	}
	if _, err := io.WriteString(conn, "after your end"); err != nil {
		t.Fatal(err)
	}
	must(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	if got := <-said; got != "after your end" {
		t.Errorf("the program got %q", got)
	}
}

// TestDialBrokenOff shows that a connection given up by one side ends for the other.
func TestDialBrokenOff(t *testing.T) {
	c, _ := process(t)
	ended := make(chan error, 1)
	port := serveTCP(t, func(s *net.TCPConn) {
		_, err := s.Read(make([]byte, 1))
		ended <- err
	})
	conn := dial(t, c, port)
	reading := make(chan error)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		reading <- err
	}()
	must(t, conn.Close())
	if err := <-reading; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read under way: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the program was not told")
	}
	must(t, conn.Close())

	port = serveTCP(t, func(s *net.TCPConn) { // closed by RST
		_, _ = s.Read(make([]byte, 1))
		_ = s.SetLinger(0)
	})
	conn = dial(t, c, port)
	_, err := conn.Write([]byte("x"))
	must(t, err)
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("a connection that was reset ended well")
	}
}

// TestDialRefused shows the typed errors.
func TestDialRefused(t *testing.T) {
	c, _ := process(t)
	kind := func(port int) string {
		conn, err := c.Dial(t.Context(), port)
		if err == nil {
			_ = conn.Close()
		}
		e, _ := errors.AsType[*wire.Error](err)
		if e == nil {
			return fmt.Sprint(err)
		}
		return e.Kind
	}
	free, err := freeport.Free()
	must(t, err)
	for port, want := range map[int]string{free: wire.ErrRefused, 0: wire.ErrRequest, -1: wire.ErrRequest, 65536: wire.ErrRequest} {
		if got := kind(port); got != want {
			t.Errorf("port %d: %s, want %s", port, got, want)
		}
	}
	pretence := inProcess(t)
	if _, err := pretence.Dial(t.Context(), free); err == nil {
		t.Error("a pretence has reached a port of this host")
	}

	port := serveTCP(t, func(s *net.TCPConn) { _, _ = io.Copy(io.Discard, s) })
	var open []net.Conn
	for range wire.MaxDials {
		open = append(open, dial(t, c, port))
	}
	if got := kind(port); got != wire.ErrBusy {
		t.Errorf("one too many: %s", got)
	}
	must(t, c.Ping(t.Context())) // other operations go on
	for _, conn := range open {
		must(t, conn.Close())
	}
	for range wire.MaxDials {
		for {
			conn, err := c.Dial(t.Context(), port)
			if e, ok := errors.AsType[*wire.Error](err); ok && e.Kind == wire.ErrBusy {
				continue // the agent is still taking leave of the ones before
			}
			must(t, err)
			_ = conn.Close()
			break
		}
	}
}

// TestDialDeadlines shows that a deadline ends what is under way, also one that is set meanwhile, and nothing else.
func TestDialDeadlines(t *testing.T) {
	c, _ := process(t)
	port := serveTCP(t, func(s *net.TCPConn) { // takes nothing until it is told, by the end of its test
		_, _ = io.Copy(io.Discard, io.LimitReader(s, 1))
		_, _ = s.Write([]byte("x"))
		<-t.Context().Done()
	})
	conn := dial(t, c, port)
	reading := make(chan error)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		reading <- err
	}()
	must(t, conn.SetReadDeadline(time.Now().Add(time.Hour)))
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	if err := <-reading; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	must(t, conn.SetReadDeadline(time.Time{}))
	_, err := conn.Write([]byte("x"))
	must(t, err)
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Errorf("after the deadline was taken away: %v", err)
	}
	much := make([]byte, 64<<20) // more than all that lies between
	n := 0
	for wait := time.Second; n == 0 && wait < time.Minute; wait *= 2 { // it is over before a byte is written where the machine stands still
		must(t, conn.SetWriteDeadline(time.Now().Add(wait)))
		n, err = conn.Write(much)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n == 64<<20 {
		t.Errorf("write: %d, %v", n, err)
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("no timeout: %v", err)
	}
}

// TestDialHTTP is what it is for.
func TestDialHTTP(t *testing.T) {
	c, _ := process(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, len(b))
	}), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return c.Dial(ctx, l.Addr().(*net.TCPAddr).Port)
	}}
	defer transport.CloseIdleConnections()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			resp, err := (&http.Client{Transport: transport}).Post(fmt.Sprintf("http://guest/%d", i), "text/plain", bytes.NewReader(make([]byte, 1<<20)))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != fmt.Sprintf("POST /%d 1048576", i) {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	all.Wait()
}

// TestDialGuestGone shows that connections end with their conversation.
func TestDialGuestGone(t *testing.T) {
	c, cmd := process(t)
	port := serveTCP(t, func(s *net.TCPConn) { _, _ = io.Copy(io.Discard, s) })
	conn := dial(t, c, port)
	must(t, cmd.Process.Kill())
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, client.ErrLost) {
		t.Errorf("read: %v", err)
	}
}
