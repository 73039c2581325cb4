// Package api is a client of Cloud Hypervisor's REST API (vmm/src/api/openapi/cloud-hypervisor.yaml of its sources, v53.0; versions
// from v51.0 on answer it): HTTP/1.1 over a unix socket, with descriptors beside a request where one is needed (unix(7), SCM_RIGHTS).
// It knows nothing of machines as Paddock has them. It may import the standard library only.
package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxAnswer bounds an answer, headers and all: the largest, vm.info, has some 20 KB. The VMM runs a stranger's guest.
const maxAnswer = 4 << 20

// Client speaks with one Cloud Hypervisor. Its methods may be called concurrently; the requests go one after the other, as the VMM
// handles them. Each waits for its answer until ctx is done; what the VMM does then is unknown, and the next request connects anew.
type Client struct {
	dial func(context.Context) (*net.UnixConn, error)
	held chan struct{} // guards conn; a channel and not a mutex because it is held while waiting
	conn *net.UnixConn
	from *io.LimitedReader
	read *bufio.Reader
}

// New makes a client that connects, when it first needs to, by dial.
func New(dial func(context.Context) (*net.UnixConn, error)) *Client {
	return &Client{dial: dial, held: make(chan struct{}, 1)}
}

// Close waits for the request under way and hangs up. A request after it connects anew.
func (c *Client) Close() {
	c.held <- struct{}{}
	defer func() { <-c.held }()
	c.hangUp()
}

func (c *Client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// Error is a request that the VMM refused.
type Error struct {
	Status int
	// Causes are the VMM's words, the outermost first. Empty where it said nothing.
	Causes []string
}

func (e *Error) Error() string {
	what := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	if len(e.Causes) == 0 {
		return what
	}
	return what + ": " + strings.Join(e.Causes, ": ")
}

// put changes something; in is the request's body, nil for none. The files are the VMM's too once it has read the request.
func (c *Client) put(ctx context.Context, path string, in any, files ...*os.File) ([]byte, error) {
	return c.do(ctx, http.MethodPut, path, in, files)
}

// get reads into out.
func (c *Client) get(ctx context.Context, path string, out any) error {
	b, err := c.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s: read the answer: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, in any, files []*os.File) ([]byte, error) {
	request, err := render(method, path, in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	select {
	case c.held <- struct{}{}:
		defer func() { <-c.held }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", path, context.Cause(ctx))
	}
	body, err := c.exchange(ctx, method, request, files)
	if _, refused := errors.AsType[*Error](err); err != nil && !refused {
		c.hangUp() // a late answer must not be the next request's
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return body, nil
}

func render(method, path string, in any) ([]byte, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, "http://localhost/api/v1/"+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	var b bytes.Buffer
	err = r.Write(&b)
	return b.Bytes(), err
}

func (c *Client) exchange(ctx context.Context, method string, request []byte, files []*os.File) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if c.conn == nil {
		conn, err := c.dial(ctx)
		if err != nil {
			return nil, err
		}
		c.conn, c.from = conn, &io.LimitedReader{R: conn}
		c.read = bufio.NewReader(c.from)
	}
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := send(conn, request, files); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	c.from.N = maxAnswer
	answer, err := http.ReadResponse(c.read, &http.Request{Method: method})
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if answer.Close || !stop() {
		c.hangUp()
	}
	if answer.StatusCode/100 == 2 {
		return body, nil
	}
	return nil, refusal(answer.StatusCode, body)
}

// send writes the request, and the descriptors with its first byte: the VMM takes those that come with a request's own bytes.
func send(conn *net.UnixConn, request []byte, files []*os.File) error {
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		n, _, err := conn.WriteMsgUnix(request, syscall.UnixRights(fds...), nil)
		if err != nil {
			return err
		}
		request = request[n:]
	}
	_, err := conn.Write(request)
	return err
}

// refusal reads the body of an error: an array of strings, each the cause of the one before (vmm/src/api/http/mod.rs, error_response).
func refusal(status int, body []byte) *Error {
	e := &Error{Status: status}
	if json.Unmarshal(body, &e.Causes) != nil {
		e.Causes = nil
		if text := strings.TrimSpace(string(body)); text != "" {
			e.Causes = []string{text}
		}
	}
	return e
}
