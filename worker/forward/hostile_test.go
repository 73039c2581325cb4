package forward_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/paddockvm/paddock/test/bubble"
	"github.com/paddockvm/paddock/worker/forward"
)

// TestHostileGuest: whatever a guest answers, the client has an answer, and the proxy stays well.
func TestHostileGuest(t *testing.T) {
	const no = "no answer in HTTP comes from port 80"
	for _, c := range []struct {
		name, says string
		status     int
		want       string
	}{
		{"nothing", "", 502, no},
		{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n", 502, no},
		{"zeroes", strings.Repeat("\x00", 1<<20), 502, no},
		{"half a header", "HTTP/1.1 200 OK\r\nA: b", 502, no},
		{"a line without end", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 1<<20), 502, no},
		{"a long line", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + strings.Repeat("a", 1<<17) + "\r\n\r\n", 502, no},
		{"many headers", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + strings.Repeat("A: b\r\n", 1<<15) + "\r\n", 502, no},
		{"headers without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 1<<18), 502, no},
		{"hints without end", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1<<16), 502, "more than 16 answers of the 1xx kind"},
		{"no status", "HTTP/1.1 001 Low\r\n\r\n", 502, no},
		{"another protocol than was asked for", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n", 502, no},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502, no},
		{"a second answer", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "ok"},
		{"some hints", strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 3) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
		{"what is for the next one", "HTTP/1.1 200 OK\r\nConnection: keep-alive, X\r\nX: y\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFront(t)
			f.says(c.says)
			for range 2 { // on one connection
				if status, body := f.get(""); status != c.status || !strings.Contains(body, c.want) || strings.Contains(body, "evil") && c.status == 200 {
					t.Fatalf("%d %.300q, want %d %q", status, body, c.status, c.want)
				}
			}
		})
	}
	t.Run("an answer that breaks off", func(t *testing.T) {
		f := newFront(t)
		f.says("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
		a, err := f.http.Get(f.url("/"))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		if b, err := io.ReadAll(a.Body); err == nil || string(b) != "half" {
			t.Errorf("%q %v", b, err)
		}
	})
}

// TestHeardOnlyWhenAsked: net/http prints what comes on a connection before it has said anything.
func TestHeardOnlyWhenAsked(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ours, guests := net.Pipe()
		p := forward.New(nil, func(context.Context, uint16) (net.Conn, error) { return ours, nil })
		defer p.Close()
		c, err := p.Connect(t.Context(), 80)
		if err != nil {
			t.Fatal(err)
		}
		said, heard := make(chan error, 1), make(chan string, 1)
		go func() {
			_, err := io.WriteString(guests, "SSH")
			said <- err
		}()
		go func() {
			b, _ := io.ReadAll(c)
			heard <- string(b)
		}()
		synctest.Wait()
		if len(said) > 0 {
			t.Error("it is heard")
		}
		go func() { _, _ = io.WriteString(c, "?") }()
		if _, err := io.ReadFull(guests, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(<-said, guests.Close()); err != nil {
			t.Fatal(err)
		}
		if s := <-heard; s != "SSH" {
			t.Errorf("heard %q", s)
		}
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestHostileClient: what a client sends is bounded.
func TestHostileClient(t *testing.T) {
	f := newFront(t)
	f.serve(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	for name, header := range map[string]string{"long": "A: " + strings.Repeat("a", 100<<10) + "\r\n", "many": strings.Repeat("A: b\r\n", 20<<10)} {
		c, r := f.dial("GET / HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\n")
		go func() { _, _ = io.WriteString(c, header+"\r\n") }()                                       // it may be cut off before its end
		if line, err := r.ReadString('\n'); err == nil && !strings.HasPrefix(line, "HTTP/1.1 431 ") { // or a reset, which comes before the answer is read
			t.Errorf("%s: %q", name, line)
		}
	}
	for _, say := range []string{
		"\x16\x03\x01\x00\x05", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
	} {
		c, r := f.dial(say)
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if line, err := r.ReadString('\n'); err == nil && !strings.Contains(line, " 4") && !strings.Contains(line, " 5") {
			t.Errorf("%q: %q", say, line)
		}
	}
	if status, body := f.get(""); status != 200 || body != "ok" {
		t.Errorf("%d %q", status, body)
	}
}

// TestProxyIsFull: a guest has as many connections as its ports may have, and a proxy as many as it may; then others wait for room.
func TestProxyIsFull(t *testing.T) {
	f := newFront(t)
	asked := make(chan struct{}, forward.Connections)
	f.serve(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	var open []net.Conn
	for range forward.Connections {
		c, _ := f.dial("GET / HTTP/1.1\r\nHost: 80-" + job + ".localhost\r\n\r\n")
		open = append(open, c)
	}
	for range forward.Connections {
		<-asked
	}
	if status, body := f.get(""); status != 503 || !strings.Contains(body, "as many connections") {
		t.Errorf("one more: %d %q", status, body)
	}
	f.http.CloseIdleConnections()
	for _, c := range open {
		c.Close()
	}
}

func TestProxyBound(t *testing.T) {
	f := newFront(t)
	f.Bound(1)
	const ask = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
	first, r := f.dial(ask)
	if status, _ := f.answer(r); status != http.StatusNotFound {
		t.Fatal(status)
	}
	c, err := net.Dial("tcp", f.at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, ask) // it may be closed already
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a second of one reads %d", n)
	}
	if err := first.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // until the proxy has closed it
		t.Fatal(err)
	}
}
