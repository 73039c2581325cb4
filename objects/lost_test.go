package objects_test

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/objects"
)

// losing is a connection to NATS on which so many requests for a consumer's messages are lost, as a cluster loses them now and then.
type losing struct {
	net.Conn
	lose *atomic.Int32
}

func (c *losing) Write(b []byte) (int, error) {
	at := bytes.Index(b, []byte("PUB $JS.API.CONSUMER.MSG.NEXT."))
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

type losingDialer struct{ lose *atomic.Int32 }

func (d losingDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &losing{c, d.lose}, err
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
	nc := n.Plain(nats.SetCustomDialer(losingDialer{&lose}))
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
