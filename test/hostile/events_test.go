package hostile_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/dispatcher/api"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/hostile"
)

// someEvents are what a worker publishes of a job.
var someEvents = []string{
	`{"type":"output","job":` + id0 + `,"tenant":"default","attempt":1,"seq":2,"time":"2026-01-02T03:04:05Z","stream":"stdout","offset":3,"text":"out"}`,
	`{"type":"state","job":` + id0 + `,"tenant":"default","attempt":1,"seq":2,"time":"2026-01-02T03:04:05Z","state":"running","worker":"w1"}`,
	`{"type":"ports","job":` + id0 + `,"tenant":"default","attempt":1,"seq":3,"time":"2026-01-02T03:04:05Z","ports":[{"guest":80,"host":"127.0.0.1:30001","url":"http://x"}]}`,
	`{"type":"step","job":` + id0 + `,"tenant":"default","attempt":2,"seq":1,"time":"2026-01-02T03:04:05Z","step_result":{"name":"0","ending":"exited","exit_code":0}}`,
	`{"type":"state","job":` + id0 + `,"tenant":"default","attempt":1,"seq":4,"time":"2026-01-02T03:04:05Z","state":"queued","reason":"r"}`,
	`{"type":"lost","job":` + id0 + `,"tenant":"default","attempt":1,"seq":4,"time":"2026-01-02T03:04:05Z","lost":{"attempt":1,"seq":1,"events":3}}`,
	`{"type":"result","job":` + id0 + `,"tenant":"default","attempt":1,"seq":5,"time":"2026-01-02T03:04:05Z","final":true,"result":` + aResult + `}`,
}

// eventIDs are by what the stream knows events: J is the job.
var eventIDs = []string{"J.1.1", "J.1.2", "J.1.3", "J.1.4", "J.2.1", "J.1.5.final", "J.1.3.closed", "J.2.9223372036854775807", "J.-1.-1", "J.9223372036854775807.1", "J.1.0", "J.1", "", "x.y.z", "J.1.2.final.x", "J.0.1"}

// FuzzEvents has a worker publish whatever it can as a job's events. Who follows the job, from Go or over HTTP, while they come and afterwards, comes to an
// end of it, and what is heard over HTTP is an event each.
func FuzzEvents(f *testing.F) {
	s := newSite(f)
	brain := &bustest.Brain{}
	bustest.Serve(f, s.bus, brain)
	s.http = serveHTTP(f, s.nc)
	for n := range someEvents {
		f.Add([]byte{byte(n), 0, 0, byte(n), byte(n), 0, 0, 5})
	}
	addRandom(f, 6, 120)
	f.Fuzz(func(t *testing.T, decisions []byte) {
		r := s.run(t, decisions)
		job := brain.Add("default")
		brain.End(job, jobs.Result{Ending: jobs.Exited, Class: jobs.ClassUser, Attempt: 1}, time.Now().Add(-time.Hour))
		subject := jobs.EventSubject("default", job)
		js := bustest.JetStream(t, s.nc)
		listening := make(chan struct{})
		var live sync.WaitGroup
		live.Go(func() {
			sub, err := s.nc.SubscribeSync(subject)
			if err != nil {
				t.Error(err)
			}
			close(listening)
			_ = sub.Unsubscribe()
			r.follow(job)
		})
		<-listening
		for n := 0; r.More() && n < 8; n++ {
			body := strings.ReplaceAll(r.Document(someEvents[r.N(len(someEvents))]), hostile.IDs[0], job)
			m := &nats.Msg{Subject: subject, Data: []byte(body)}
			if id := eventIDs[r.N(len(eventIDs))]; id != "" {
				m.Header = nats.Header{nats.MsgIdHdr: {strings.ReplaceAll(id, "J", job)}}
			}
			r.said = append(r.said, fmt.Sprintf("%v %.2000s", m.Header, body))
			if _, err := js.PublishMsg(t.Context(), m); err != nil {
				r.said = append(r.said, "  "+err.Error())
			}
		}
		live.Wait()
		r.follow(job)
		r.watch(job)
		answer, _ := r.ask("paddock.v1.replay.default", nil, `{"job":"`+job+`"}`)
		r.typed("", answer)
	})
}

// follow follows a job to its end, which there is: the job's record has one.
func (r *run) follow(job string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	c, err := client.New(r.nc, "default")
	if err != nil {
		r.Fatal(err)
	}
	for e, err := range c.Follow(ctx, job, client.Position{}) {
		if err != nil {
			r.Errorf("follow: %v\n%s", err, strings.Join(r.said, "\n"))
			return
		}
		if _, err := json.Marshal(e); err != nil {
			r.Errorf("an event that cannot be written: %v", err)
		}
	}
	if _, err := c.Wait(ctx, job); err != nil {
		r.Errorf("wait: %v\n%s", err, strings.Join(r.said, "\n"))
	}
}

// watch reads a job's events over HTTP.
func (r *run) watch(job string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.http+"/v1/jobs/"+job+"/events", nil)
	if err != nil {
		r.Fatal(err)
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		r.fail("watch: %v", err)
	}
	defer a.Body.Close()
	if a.StatusCode != http.StatusOK {
		r.fail("watch: %s", a.Status)
	}
	lines := bufio.NewScanner(a.Body)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		var e jobs.Event
		switch field {
		case "", "id", "event", "retry":
		case "data":
			if err := json.Unmarshal([]byte(value), &e); err != nil {
				r.fail("data that is no event: %v: %.300s", err, value)
			}
		default:
			r.fail("a line %.300q", lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		r.fail("watch: %v", err)
	}
}

// serveHTTP serves jobs' events as `paddock up` does, and gives where.
func serveHTTP(f *testing.F, nc *nats.Conn) (url string) {
	f.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.New(api.Config{Source: source{nc}, Log: zerolog.Nop()}).Run(ctx, l) }()
	f.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			f.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return "http://" + l.Addr().String()
}

// source asks as every client does.
type source struct{ nc *nats.Conn }

func (s source) Replay(ctx context.Context, tenant string, q jobs.ReplayRequest) (jobs.ReplayReply, error) {
	c, err := client.New(s.nc, tenant)
	if err != nil {
		return jobs.ReplayReply{}, err
	}
	return c.Replay(ctx, q)
}

func (s source) Follow(ctx context.Context, tenant, job string, after jobs.Position) iter.Seq2[jobs.Event, error] {
	c, err := client.New(s.nc, tenant)
	if err != nil {
		return func(yield func(jobs.Event, error) bool) { yield(jobs.Event{}, err) }
	}
	return c.Follow(ctx, job, client.Position{Attempt: after.Attempt, Seq: after.Seq})
}
