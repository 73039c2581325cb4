package dispatcher_test

import (
	"context"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// machinist is a worker of a world, with one place. It keeps what workers must: it names its attempt in heartbeats, ends it itself when
// nobody answers, and sends its report until that is answered. It also dies, falls silent, and loses answers.
type machinist struct {
	*world
	name    string
	session int64
	ttl     time.Duration
	heard   time.Time
	held    []jobs.Held // one, or none
}

// work is one life after another.
func (m *machinist) work(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		m.beat()
		if l, ok := m.lease(); ok {
			m.held = []jobs.Held{l.Held}
			m.attempt(l, stop)
			m.held = nil
		}
	}
}

// beat tells whether the worker still has what it had.
func (m *machinist) beat() bool {
	sent, session := time.Now(), m.session
	var reply jobs.BeatReply
	err := m.call(func(ctx context.Context, d *dispatcher.Dispatcher) (err error) {
		reply, err = d.Beat(ctx, jobs.Beat{
			Worker: m.name, Session: m.session, Capacity: size, Images: []jobs.OfferedImage{{Name: "base", Resources: jobs.Resources{VCPUs: 1, MemoryMiB: 256}}}, Running: m.held,
		})
		return err
	})
	if err != nil {
		return time.Since(m.heard) < m.ttl
	}
	m.session, m.heard, m.ttl = reply.Session, sent, time.Duration(reply.TTLMS)*time.Millisecond
	return session == m.session && len(reply.Drop) == 0 && len(reply.Cancel) == 0
}

func (m *machinist) lease() (l jobs.Lease, ok bool) {
	var reply jobs.LeaseReply
	err := m.call(func(ctx context.Context, d *dispatcher.Dispatcher) (err error) {
		reply, err = d.Lease(ctx, jobs.LeaseRequest{Worker: m.name, Session: m.session, Slots: 1, Free: size, WaitMS: 2000})
		return err
	})
	if err != nil {
		time.Sleep(time.Second)
		return l, false
	}
	if len(reply.Leases) == 0 || m.roll(20) == 0 { // or it was lost on its way
		return l, false
	}
	return reply.Leases[0], true
}

// attempt runs a lease: some events, and a report. It is given up where it is not this worker's any more.
func (m *machinist) attempt(l jobs.Lease, stop <-chan struct{}) {
	events := int64(0)
	for range m.roll(4) {
		if !m.beat() {
			return
		}
		m.held[0].Running = true
		events++
		e := jobs.Event{Type: jobs.EventOutput, Job: l.Job, Tenant: l.Tenant, Attempt: l.Attempt, Seq: events, Stream: jobs.Stdout, Content: jobs.Content{Text: m.name}}
		if err := m.board.Publish(m.Context(), e); err != nil {
			m.Error(err)
		}
		time.Sleep(time.Duration(m.roll(2000)) * time.Millisecond)
	}
	r := jobs.Report{Worker: m.name, Session: m.session, Held: l.Held, Events: events}
	r.Result = jobs.Result{Ending: jobs.Exited, Reason: machineOf(l.Job, l.Attempt, l.Epoch), Worker: m.name}
	switch m.roll(10) {
	case 0, 1, 2:
		r.Result.Ending = jobs.VMFailed
	case 3:
		r.Result.Ending = jobs.HostResources
	case 4: // it dies, and starts anew at once, or later than anybody waits
		m.session = 0
		time.Sleep(time.Duration(m.roll(2)) * time.Minute)
		return
	case 5: // it is paused, and does not know it: its report comes late
		time.Sleep(time.Duration(m.roll(60)) * time.Second)
	}
	m.report(r, stop)
}

// report sends a report until it is answered.
func (m *machinist) report(r jobs.Report, stop <-chan struct{}) {
	for {
		var reply jobs.ReportReply
		err := m.call(func(ctx context.Context, d *dispatcher.Dispatcher) (err error) {
			reply, err = d.Report(ctx, r)
			return err
		})
		if err == nil {
			if !reply.Fenced && r.Result.Ending == jobs.Exited {
				m.mu.Lock()
				m.counted[r.Job]++
				m.mu.Unlock()
			}
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
		if !m.beat() && time.Since(m.heard) > 2*m.ttl {
			return // it lies on the disk and would be fenced
		}
	}
}
