package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/paddockvm/paddock/guestagent/wire"
)

// Streams are where a program's streams lead on the host. The writers are called from one goroutine, in the order in which the guest
// sent; a slow one slows the program. A nil Stdin is empty, a nil writer throws away.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Exec runs a program to its end. The Exit is the program's outcome; an error is ours or the agent's: *wire.Error where the agent could
// not run it, ErrLost where the agent vanished, what a writer returned, or ctx's. When ctx ends, the program is killed and Exec returns.
// Exec does not wait for a Stdin that blocks in Read: a goroutine stays in that Read until the caller ends it.
func (c *Client) Exec(ctx context.Context, r wire.Exec, io Streams) (wire.Exit, error) {
	r.StdinOpen = io.Stdin != nil
	s, err := c.open(wire.Request{Op: wire.OpExec, Exec: &r})
	if err != nil {
		return wire.Exit{}, err
	}
	defer s.Close() // the guest kills what a reset stream had started
	if io.Stdin != nil {
		stdinCtx, stop := context.WithCancel(ctx)
		defer stop()
		go feed(stdinCtx, s, io.Stdin)
	}
	var got output
	for {
		ch, b, reply, err := s.Recv(ctx)
		if err != nil {
			return c.exited(ctx, reply, err, got)
		}
		if err := got.take(io, ch, b); err != nil {
			return wire.Exit{}, err
		}
	}
}

// output counts what came, to be held against what the guest says it sent.
type output struct{ stdout, stderr int64 }

func (o *output) take(to Streams, ch wire.Channel, b []byte) error {
	w := to.Stdout
	switch ch {
	case wire.ChanStdout:
		o.stdout += int64(len(b))
	case wire.ChanStderr:
		o.stderr += int64(len(b))
		w = to.Stderr
	default:
		return fmt.Errorf("exec: %w: output on channel %d", ErrLost, ch)
	}
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

func (c *Client) exited(ctx context.Context, reply *wire.Reply, err error, got output) (wire.Exit, error) {
	reply, err = c.result(wire.OpExec, reply, err)
	switch {
	case err != nil && ctx.Err() != nil:
		return wire.Exit{}, fmt.Errorf("exec: %w", context.Cause(ctx))
	case err != nil:
		return wire.Exit{}, err
	case reply.Exit == nil:
		return wire.Exit{}, fmt.Errorf("exec: %w: a reply without an exit", ErrLost)
	case reply.Exit.StdoutBytes != got.stdout || reply.Exit.StderrBytes != got.stderr:
		return wire.Exit{}, fmt.Errorf("exec: %w: %d+%d bytes of output came, the agent says %d+%d", ErrLost,
			got.stdout, got.stderr, reply.Exit.StdoutBytes, reply.Exit.StderrBytes)
	}
	return *reply.Exit, nil
}

// feed passes stdin on until it ends, or the program does.
func feed(ctx context.Context, s *wire.Stream, stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		if n > 0 && s.Send(ctx, wire.ChanData, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = s.End()
			return
		}
	}
}

// Get reads the files that match r and gives each to f, which must read it to its end or return an error.
func (c *Client) Get(ctx context.Context, r wire.Get, f func(wire.FileHeader, io.Reader) error) error {
	s, err := c.open(wire.Request{Op: wire.OpGet, Get: &r})
	if err != nil {
		return err
	}
	defer s.Close()
	left, files := r.MaxBytes, 0
	for {
		ch, b, reply, err := s.Recv(ctx)
		if err != nil {
			reply, err = c.result(wire.OpGet, reply, err)
			if err == nil && reply.Files != files {
				err = fmt.Errorf("get: %w: %d files came, the agent says %d", ErrLost, files, reply.Files)
			}
			return err
		}
		h, err := fileHeader(ch, b)
		if err != nil {
			return err
		}
		if files++; files > r.MaxFiles || h.Size > left {
			return fmt.Errorf("get: %w: more than was asked for", ErrLost)
		}
		left -= h.Size
		body := &fileReader{ctx: ctx, s: s, left: h.Size}
		if err := f(h, body); err != nil {
			return err
		}
		if body.left > 0 || len(body.buf) > 0 {
			return errors.New("get: a file was not read to its end")
		}
	}
}
