// Package client is the host's end of the guest agent's protocol: one Client per machine, over whatever byte stream the driver
// dialled. What comes from a guest is bounded and checked here; a guest that lies can only make its own operations fail.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// ErrLost says that the agent vanished, or spoke nonsense, before it answered.
var ErrLost = errors.New("guest agent lost")

// Client speaks to one agent. Its methods may be called concurrently.
type Client struct {
	conn  net.Conn
	c     *wire.Conversation
	hello wire.Hello
	read  sync.WaitGroup
}

// Connect greets the agent at the other end of conn and asks who it is. ctx bounds that. On success the Client owns conn; otherwise
// conn cannot be used any more, and is the caller's to close.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	conv, err := wire.Host(ctx, conn)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // also ends a write that nobody takes
	c := &Client{conn: conn, c: conv}
	c.read.Go(func() { _ = conv.Run() })
	reply, err := c.call(ctx, wire.Request{Op: wire.OpHello})
	if err == nil && reply.Hello == nil {
		err = fmt.Errorf("%w: hello without content", ErrLost)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.shut()
		return nil, err
	}
	c.hello = *reply.Hello
	return c, nil
}

// Hello is what the agent said of itself.
func (c *Client) Hello() wire.Hello { return c.hello }

// Done is closed when the agent cannot be spoken to any more.
func (c *Client) Done() <-chan struct{} { return c.c.Done() }

// Close ends the conversation and closes the byte stream. It is idempotent.
func (c *Client) Close() error {
	c.shut()
	return nil
}

func (c *Client) shut() {
	c.c.Close()
	_ = c.conn.Close()
	c.read.Wait()
}

// Ping asks for an answer.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.call(ctx, wire.Request{Op: wire.OpPing})
	return err
}

// Restore makes a clone a machine of its own. It is the first call after a restore.
func (c *Client) Restore(ctx context.Context, r wire.Restore) (wire.Ready, error) {
	reply, err := c.call(ctx, wire.Request{Op: wire.OpRestore, Restore: &r})
	if err != nil {
		return wire.Ready{}, err
	}
	if reply.Ready == nil || string(reply.Ready.Epoch) != string(r.Epoch) {
		return wire.Ready{}, fmt.Errorf("%w: ready for another restore", ErrLost)
	}
	return *reply.Ready, nil
}

// Quiesce readies the guest for a snapshot.
func (c *Client) Quiesce(ctx context.Context) error {
	_, err := c.call(ctx, wire.Request{Op: wire.OpQuiesce})
	return err
}

// Resize has the guest use that many processors, and that much memory beyond what it booted with, and gives what it uses now, which may be
// less or more. It is called after the machine has grown, and before it shrinks. What the guest says is the guest's word.
func (c *Client) Resize(ctx context.Context, r wire.Resize) (wire.Size, error) {
	reply, err := c.call(ctx, wire.Request{Op: wire.OpResize, Resize: &r})
	if err != nil {
		return wire.Size{}, err
	}
	if reply.Size == nil {
		return wire.Size{}, fmt.Errorf("resize: %w: a reply without a size", ErrLost)
	}
	return *reply.Size, nil
}

// PowerOff asks the guest to end its machine. There is no answer: the machine's end is.
func (c *Client) PowerOff(ctx context.Context) error {
	_, err := c.call(ctx, wire.Request{Op: wire.OpPower})
	if errors.Is(err, ErrLost) {
		return nil
	}
	return err
}

// Signal sends a signal, by its name ("SIGTERM"), to all processes of an Exec that runs.
func (c *Client) Signal(ctx context.Context, exec, signal string) error {
	_, err := c.call(ctx, wire.Request{Op: wire.OpSignal, Signal: &wire.Signal{Exec: exec, Signal: signal}})
	return err
}

// call is an operation that is one request and one reply.
func (c *Client) call(ctx context.Context, r wire.Request) (*wire.Reply, error) {
	s, err := c.open(r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_, _, reply, err := s.Recv(ctx)
	return result(ctx, r.Op, reply, err)
}

func (c *Client) open(r wire.Request) (*wire.Stream, error) {
	s, err := c.c.Open(r)
	var refused *wire.Error
	if err != nil && !errors.As(err, &refused) {
		return nil, fmt.Errorf("%s: %w: %w", r.Op, ErrLost, err)
	}
	return s, err
}

// result turns a stream's end into the reply or an error: the agent's own (*wire.Error), the context's cause, or ErrLost.
func result(ctx context.Context, op wire.Op, reply *wire.Reply, err error) (*wire.Reply, error) {
	switch {
	case reply != nil && reply.Error != nil:
		reply.Error.Kind, reply.Error.Message = cut(reply.Error.Kind), cut(reply.Error.Message)
		return nil, fmt.Errorf("%s: %w", op, reply.Error)
	case reply != nil:
		return reply, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	case err == nil:
		return nil, fmt.Errorf("%s: %w: data where a reply belongs", op, ErrLost)
	default:
		return nil, fmt.Errorf("%s: %w: %w", op, ErrLost, err)
	}
}

// maxSaid is how long an agent's errors are at most: they go into logs.
const maxSaid = 4096

func cut(s string) string {
	if len(s) <= maxSaid {
		return s
	}
	return strings.ToValidUTF8(s[:maxSaid], "")
}
