package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"strings"
	"sync"
	"syscall"
)

// earlyHints is how many answers of the 1xx kind may come before the answer itself.
const earlyHints = 16

// guest is a proxy's way to the ports of one guest.
type guest struct {
	ports  *Ports
	byPort map[uint16]http.Handler
}

func newGuest(ports *Ports) *guest {
	g := &guest{ports: ports, byPort: map[uint16]http.Handler{}}
	for port := range ports.All() {
		g.byPort[port] = way(ports, port)
	}
	return g
}

// serve has the guest answer a request. The client's connection ends with the ports: whoever is in the middle of an answer then, or does not
// read it, has nothing more to come.
func (g *guest) serve(w http.ResponseWriter, r *http.Request, port uint16) {
	to := g.byPort[port]
	if to == nil {
		refuse(w, http.StatusNotFound, "the job's spec does not list port %d: network.ports\n", port)
		return
	}
	if r.Method == http.MethodConnect { // it asks for a way to anywhere
		refuse(w, http.StatusMethodNotAllowed, "there is no CONNECT here\n")
		return
	}
	release, err := g.ports.hold(r.Context().Value(clientKey{}).(net.Conn))
	if err != nil {
		fail(w, port, err)
		return
	}
	defer release()
	to.ServeHTTP(w, r.WithContext(httptrace.WithClientTrace(r.Context(), boundEarly())))
}

// boundEarly ends an answer that does not come to its point: of answers of the 1xx kind net/http takes any number, and passes them on.
func boundEarly() *httptrace.ClientTrace {
	n := 0
	return &httptrace.ClientTrace{Got1xxResponse: func(int, textproto.MIMEHeader) error {
		if n++; n > earlyHints {
			return fmt.Errorf("more than %d answers of the 1xx kind", earlyHints)
		}
		return nil
	}}
}

// way leads to one port. A connection is for one request: nothing stays open in a guest, and none that a program has closed meanwhile is
// tried. What comes back goes on as it comes.
func way(ports *Ports, port uint16) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", fmt.Sprintf("127.0.0.1:%d", port) // Host stays: programs compare it with Origin
			r.Out.URL.RawQuery = r.In.URL.RawQuery                                       // to the byte
			for name := range r.Out.Header {
				if forwarded(name) {
					delete(r.Out.Header, name)
				}
			}
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return ports.connect(ctx, port) },
			DisableKeepAlives:      true,
			DisableCompression:     true, // the client's own affair
			MaxResponseHeaderBytes: headerBytes,
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // of guests and clients that break off
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, err error) { fail(w, port, err) },
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode < 100 { // net/http reads it, and panics when it shall write it
				return fmt.Errorf("status %03d", r.StatusCode)
			}
			return nil
		},
	}
}

// forwarded tells a header that only a proxy may set. Some programs take _ for -.
func forwarded(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "x-forwarded-") || name == "forwarded" || name == "x-real-ip"
}

// fail says why there is no answer of the guest's.
func fail(w http.ResponseWriter, port uint16, err error) {
	_, dialing := errors.AsType[*dialError](err)
	switch {
	case errors.Is(err, ErrClosed):
		refuse(w, http.StatusNotFound, "the job has no ports here any more: it ends\n")
	case errors.Is(err, ErrBusy):
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "as many connections to the job's machine as there may be are open\n")
	case errors.Is(err, syscall.ECONNREFUSED):
		refuse(w, http.StatusBadGateway, "nothing listens on port %d of the job's machine\n", port)
	case dialing:
		refuse(w, http.StatusBadGateway, "port %d of the job's machine is not reached: %.200s\n", port, err)
	default:
		refuse(w, http.StatusBadGateway, "no answer in HTTP comes from port %d of the job's machine: %.200s\n", port, err)
	}
}

// dialError is of a connection that has not come about.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// connect dials a port of the guest; Close ends the connection, too.
func (p *Ports) connect(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, guestAnswers)
	defer cancel()
	defer context.AfterFunc(p.life, cancel)() //nolint:contextcheck // until the ports are closed
	c, err := p.dial(ctx, port)
	if err != nil {
		return nil, &dialError{err}
	}
	g := &guestConn{Conn: c, asked: make(chan struct{})}
	if g.release, err = p.hold(g); err != nil {
		_ = c.Close()
		return nil, err
	}
	return g, nil
}

// guestConn is a connection to a guest that is read only once something has been written: what a guest says before it is asked is no answer,
// and net/http would print it.
type guestConn struct {
	net.Conn
	release func()
	writes  sync.Once
	asked   chan struct{} // closed by the first write, or the end
	closes  sync.Once
}

func (g *guestConn) ask() { g.writes.Do(func() { close(g.asked) }) }

func (g *guestConn) Read(b []byte) (int, error) {
	<-g.asked
	return g.Conn.Read(b)
}

func (g *guestConn) Write(b []byte) (int, error) {
	g.ask()
	return g.Conn.Write(b)
}

// CloseWrite ends what is said to the guest, where that can be.
func (g *guestConn) CloseWrite() error {
	if c, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (g *guestConn) Close() (err error) {
	g.closes.Do(func() {
		g.ask()
		err = g.Conn.Close()
		g.release()
	})
	return err
}
