package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/paddockvm/paddock/jobs"
)

// kept is one event as the stream has it.
type kept struct {
	at      int64 // its place in the stream
	attempt int
	seq     int64
	final   bool
	closed  bool // it ends its attempt, and was numbered by CloseAttempt
	data    []byte
}

// readable tells whether an event can be a part of a reply. What a worker has published is given as it is, and a worker can publish anything.
// One that is stored as a job's last and does not say so would keep who follows the job waiting for the last.
func (k *kept) readable() bool {
	if !k.final {
		return json.Valid(k.data)
	}
	var e jobs.Event
	return json.Unmarshal(k.data, &e) == nil && e.Final
}

// directGet is the part that is used here of JSApiMsgGetRequest in nats-server (ADR-31 of NATS).
type directGet struct {
	Seq      int64  `json:"seq,omitempty"`
	NextFor  string `json:"next_by_subj"`
	Batch    int    `json:"batch"`
	MaxBytes int64  `json:"max_bytes"`
}

const (
	// directSubject is where JetStream takes them.
	directSubject = "$JS.API.DIRECT.GET." + jobs.StreamEvents
	// pendingHeader is of the last reply: how many messages the stream has beyond.
	pendingHeader = "Nats-Num-Pending"
)

// keptFrom gives what the stream has of a subject from a place on: at most n events, and no more of them once they have maxBytes; more
// tells whether there are further ones. In a cluster it may be a replica's answer that lacks the very latest. No consumer is made for
// it: a stream with thousands of them is slow for those who publish.
func (c *conn) keptFrom(ctx context.Context, subject string, at int64, n int, maxBytes int64) (events []kept, more bool, _ error) {
	body, err := json.Marshal(directGet{Seq: at, NextFor: subject, Batch: n, MaxBytes: maxBytes})
	if err != nil {
		panic(err) // plain data
	}
	lost := c.untilLost()
	replies := make(chan *nats.Msg, n+1) // the last tells the end
	inbox := c.NewInbox()
	sub, err := c.ChanSubscribe(inbox, replies)
	if err != nil {
		return nil, false, unavailable("read events", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	if err := c.PublishRequest(directSubject, inbox, body); err != nil {
		return nil, false, unavailable("read events", err)
	}
	for {
		select {
		case m := <-replies:
			switch status := m.Header.Get("Status"); status {
			case "":
				events = append(events, keptIn(m))
			case "204": // that was all that was asked for
				return events, m.Header.Get(pendingHeader) != "0", nil
			case "404":
				return nil, false, nil
			default:
				return nil, false, unavailable("read events", fmt.Errorf("jetstream: %s %s", status, m.Header.Get("Description")))
			}
		case <-lost:
			return nil, false, unavailable("read events", errDisconnected)
		case <-ctx.Done():
			return nil, false, unavailable("read events", context.Cause(ctx))
		}
	}
}

func keptIn(m *nats.Msg) kept {
	k := kept{data: m.Data}
	k.at, _ = strconv.ParseInt(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	k.name(m.Header.Get(nats.MsgIdHdr))
	return k
}

// name reads what messageID made: so nothing need be decoded that is only passed on. What has another id is nobody's event, and is
// before all of them.
func (k *kept) name(id string) {
	f := strings.Split(id, ".")
	if len(f) < 3 {
		return
	}
	attempt, err := strconv.Atoi(f[1])
	if err != nil {
		return
	}
	seq, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil {
		return
	}
	k.attempt, k.seq = attempt, seq
	if len(f) == 4 {
		k.final, k.closed = f[3] == final, f[3] == closed
	}
}

// another makes a further connection, as this one is. The server reads for a replay where it takes its connection's messages, and what
// is published on the same one would wait for that.
func (c *conn) another(name string) (*conn, error) {
	n := newConn()
	o := c.Opts
	o.Name += " " + name
	o.DisconnectedErrCB = func(*nats.Conn, error) { n.lost() }
	o.ReconnectedCB = nil // this one tells
	var err error
	n.Conn, err = o.Connect()
	return n, err
}

// untilLost is closed when the connection as it is now is lost.
func (c *conn) untilLost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}
