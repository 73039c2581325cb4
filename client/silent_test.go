package client_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// silent dials a server of NATS that is there, and on which nobody answers. It greets after a while.
type silent struct{ greets time.Duration }

// looks is how often somebody has asked it for a job's record.
var looks atomic.Int64

func (s silent) Dial(string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		time.Sleep(s.greets)
		if _, err := fmt.Fprintf(theirs, "INFO {\"server_id\":\"s\",\"version\":\"2.12.0\",\"headers\":true,\"max_payload\":1048576}\r\n"); err != nil {
			return
		}
		for l := bufio.NewScanner(theirs); l.Scan(); {
			if strings.HasPrefix(l.Text(), "PUB paddock.v1.get.") {
				looks.Add(1)
			}
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

// A server on a machine that is loaded may take its time to greet.
func TestGreetedLate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := client.Connect("nats://127.0.0.1:4222", client.NATS(nats.SetCustomDialer(silent{9 * time.Second})))
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

// A request that nobody answers is "unavailable" where the time was the client's own, which a caller's that is longer does not change, and
// the context's end where it was the caller's.
func TestNoAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := client.Connect("nats://127.0.0.1:4222", client.NATS(nats.SetCustomDialer(silent{})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		long, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for _, ctx := range []context.Context{t.Context(), long} {
			began := time.Now()
			_, err = c.Get(ctx, jobs.NewID())
			if e := jobs.ErrorOf(err); code(err) != jobs.CodeUnavailable || e.RetryAfterMS == 0 {
				t.Errorf("got %v, want unavailable, and when to come again", err)
			}
			if took := time.Since(began); took != 30*time.Second {
				t.Errorf("it took %v", took)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Get(ctx, jobs.NewID()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
	})
}

// Input is taken when its program reads, which may be long after a request's time.
func TestInputThatIsNotReadYet(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := client.Connect("nats://127.0.0.1:4222", client.NATS(nats.SetCustomDialer(silent{})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		began := time.Now()
		_, err = c.Stdin(ctx, jobs.NewID()).Write([]byte("x"))
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Hour {
			t.Errorf("after %v: %v, want the caller's deadline", took, err)
		}
		began = time.Now()
		_, err = c.Stdin(t.Context(), jobs.NewID()).Write([]byte("x"))
		if took := time.Since(began); code(err) != jobs.CodeUnavailable || took != 30*time.Second {
			t.Errorf("without a deadline: after %v: %v, want unavailable", took, err)
		}
	})
}

// deaf takes what a client asks and never answers; asked has one for each question.
func deaf(t *testing.T, s *bustest.Server) (asked chan string) {
	t.Helper()
	s.Connect() // for the streams
	nc := s.Plain()
	asked = make(chan string, 100)
	if _, err := nc.Subscribe("paddock.v1.get.>", func(m *nats.Msg) { asked <- m.Subject }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return asked
}

// An answer to what was asked before the connection was lost never comes: nobody waits for it.
func TestConnectionLostBeforeTheAnswer(t *testing.T) {
	s := bustest.Start(t)
	asked := deaf(t, s)
	c := connect(t, s)
	failed := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := c.Get(t.Context(), jobs.NewID())
		failed <- err
	}()
	<-asked
	s.Close()
	s.Restart()
	if err := <-failed; code(err) != jobs.CodeUnavailable || time.Since(began) > 25*time.Second {
		t.Errorf("after %v: %v, want unavailable", time.Since(began), err)
	}
	go func() {
		_, err := c.Get(t.Context(), jobs.NewID())
		failed <- err
	}()
	<-asked
	c.Close()
	if err := <-failed; !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("a client that was closed: %v", err)
	}
}

// Whoever waits for a job's end hears of it, whether or not what he asks besides is answered.
func TestWaitHearsTheEndWhoeverAnswers(t *testing.T) {
	s := bustest.Start(t)
	asked := deaf(t, s)
	c := connect(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, ended := jobs.NewID(), make(chan error, 1)
	began := time.Now()
	go func() {
		r, err := c.Wait(ctx, id)
		if err == nil && r.Ending != jobs.Exited {
			err = fmt.Errorf("got %+v", r)
		}
		ended <- err
	}()
	<-asked
	bustest.Publish(t, s.Connect(), bustest.Final(id, 1, 1))
	if err := <-ended; err != nil || time.Since(began) > 25*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// A look at the job's record that is not answered is followed by another.
func TestWaitLooksAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, err := client.Connect("nats://127.0.0.1:4222", client.NATS(nats.SetCustomDialer(silent{})))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour-time.Second)
		defer cancel()
		looks.Store(0)
		if _, err := c.Wait(ctx, jobs.NewID()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline", err)
		}
		if n := looks.Load(); n != 300 { // 10 s, and 2 s between them
			t.Errorf("it has looked %d times", n)
		}
	})
}
