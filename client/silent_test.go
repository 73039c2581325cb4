package client_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// silent dials a server of NATS that is there, and on which nobody answers.
type silent struct{}

func (silent) Dial(string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := fmt.Fprintf(theirs, "INFO {\"server_id\":\"s\",\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576}\r\n"); err != nil {
			return
		}
		for l := bufio.NewScanner(theirs); l.Scan(); {
			if l.Text() != "PING" {
				continue
			}
			if _, err := fmt.Fprint(theirs, "PONG\r\n"); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

// A request that nobody answers is "unavailable" where the time was the client's own, and the context's end where it was the caller's.
func TestNoAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := client.Connect("nats://127.0.0.1:4222", client.NATS(nats.SetCustomDialer(silent{})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		_, err = c.Get(t.Context(), jobs.NewID())
		if e := jobs.ErrorOf(err); code(err) != jobs.CodeUnavailable || e.RetryAfterMS == 0 {
			t.Errorf("got %v, want unavailable, and when to come again", err)
		}
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("it took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Get(ctx, jobs.NewID()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
	})
}
