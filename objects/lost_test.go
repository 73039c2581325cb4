package objects_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/objects"
)

// losing is a connection to NATS on which so many messages are lost that begin as what says, as a cluster loses some now and then.
type losing struct {
	net.Conn
	what string
	lose *atomic.Int32
}

func (c *losing) Write(b []byte) (int, error) {
	at := bytes.Index(b, []byte(c.what))
	if at < 0 || c.lose.Add(-1) < 0 {
		return c.Conn.Write(b)
	}
	line, _, _ := bytes.Cut(b[at:], []byte("\r\n"))
	fields := bytes.Fields(line)
	n, err := strconv.Atoi(string(fields[len(fields)-1]))
	if err != nil {
		return 0, err
	}
	end := at + len(line) + 2 + n + 2
	if _, err := c.Conn.Write(append(bytes.Clone(b[:at]), b[end:]...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

type losingDialer struct {
	what string
	lose *atomic.Int32
}

func (d losingDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &losing{c, d.what, d.lose}, err
}

// Whoever asks a new consumer is heard of all the same, and soon: within the ten seconds that a dispatcher has for a piece.
func TestLostRequest(t *testing.T) {
	n := bustest.Start(t)
	content := bytes.Repeat([]byte("lost "), 100_000)
	ref, err := objects.NewJetStream(bustest.JetStream(t, n.Plain())).Put(t.Context(), "t", bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	var lose atomic.Int32
	lose.Store(1)
	nc := n.Plain(nats.SetCustomDialer(losingDialer{"PUB $JS.API.CONSUMER.MSG.NEXT.", &lose}))
	s := objects.NewJetStream(bustest.JetStream(t, nc))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, _, err := s.Piece(ctx, "t", ref.Name, 0, len(content))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if lose.Load() >= 1 {
		t.Error("nothing was lost")
	}
}

// An answer that never comes is waited for as long as one may take, and not as long as an object may: who waits hears that, and can ask again.
func TestLostAnswer(t *testing.T) {
	n := bustest.Start(t)
	well := objects.NewJetStream(bustest.JetStream(t, n.Plain()))
	ref, err := well.Put(t.Context(), "t", strings.NewReader("here"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(s *objects.JetStream) error {
		return s.PutAs(t.Context(), "t", fmt.Sprintf("%x", sha256.Sum256([]byte("more"))), 4, strings.NewReader("more"))
	}
	get := func(s *objects.JetStream) error {
		r, err := s.Get(t.Context(), "t", ref.Name)
		if err == nil {
			err = r.Close()
		}
		return err
	}
	for _, c := range []struct {
		name, lost string
		do         func(s *objects.JetStream) error
	}{
		{"the bucket, to put", "PUB $JS.API.STREAM.INFO.OBJ_", put},
		{"a chunk", "PUB $O.", put},
		{"the bucket, to get", "PUB $JS.API.STREAM.INFO.OBJ_", get},
		{"what is said of it", "PUB $JS.API.DIRECT.GET.OBJ_", get},
	} {
		t.Run(c.name, func(t *testing.T) {
			var lose atomic.Int32
			lose.Store(1)
			js, err := jetstream.New(n.Plain(nats.SetCustomDialer(losingDialer{c.lost, &lose})), jetstream.WithDefaultTimeout(3*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			got := make(chan error, 1)
			go func() { got <- c.do(objects.NewJetStream(js)) }()
			select {
			case err := <-got:
				if e := jobs.ErrorOf(err); e == nil || e.Code != jobs.CodeUnavailable || e.RetryAfterMS == 0 {
					t.Errorf("got %v, want unavailable, and when to come again", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it still waits")
			}
			if lose.Load() >= 1 {
				t.Error("nothing was lost")
			}
			if err := c.do(well); err != nil {
				t.Error("again:", err)
			}
		})
	}
}
