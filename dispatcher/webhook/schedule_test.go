package webhook_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// told is a try as the server saw it.
type told struct {
	at            time.Time
	id, timestamp string
}

// book writes tries down, and answers them.
type book struct {
	mu     sync.Mutex
	tries  []told
	answer func(n int) *http.Response // n counts from 1
	takes  time.Duration
}

func (b *book) trip(r *http.Request) (*http.Response, error) {
	time.Sleep(b.takes)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries = append(b.tries, told{time.Now(), r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")})
	if b.answer == nil {
		return says(200), nil
	}
	return b.answer(len(b.tries)), nil
}

func (b *book) all() []told {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]told(nil), b.tries...)
}

// one has one event told to one endpoint, with time to go by, and gives the service.
func one(t *testing.T, b *book, pass time.Duration) (*webhook.Service, jobs.Endpoint) {
	t.Helper()
	store := webhooktest.NewStore()
	s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip), Keep: 30 * 24 * time.Hour})
	e, _ := add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
	store.Hook(ended("t"))
	time.Sleep(pass)
	synctest.Wait()
	stop()
	return s, e
}

// TestSchedule: a server that never takes it is tried ten times in about 75 hours, under one id, each time with its own time.
func TestSchedule(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := &book{answer: func(int) *http.Response { return says(500) }}
		s, _ := one(t, b, 100*time.Hour)
		tries := b.all()
		pauses := []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour}
		if len(tries) != len(pauses)+1 {
			t.Fatalf("%d tries, want %d", len(tries), len(pauses)+1)
		}
		for i, p := range pauses {
			got := tries[i+1].at.Sub(tries[i].at)
			// the circuit, open after five failures, may hold a try back by no more than it stays open
			if got < p*9/10 || got > p*11/10+11*time.Minute {
				t.Errorf("pause %d is %v, want about %v", i+1, got, p)
			}
			if tries[i+1].id != tries[0].id || tries[i+1].timestamp == tries[i].timestamp {
				t.Errorf("try %d: id %s and timestamp %s after %s and %s", i+2, tries[i+1].id, tries[i+1].timestamp, tries[0].id, tries[i].timestamp)
			}
		}
		if all := tries[9].at.Sub(tries[0].at); all < 68*time.Hour || all > 84*time.Hour {
			t.Errorf("all tries are within %v, want about 75h", all)
		}
		d := only(t, s, "t")
		if d.State != jobs.DeliveryFailed || d.Attempts != 10 || len(d.Tries) != 10 || d.ID != tries[0].id || d.Error != "answered 500" || d.Tries[9].Status != 500 {
			t.Errorf("delivery %+v", d)
		}
	})
}

// TestClockSetBack: what was to be told first when the clock was ahead is told at once when it is right again, by this life and by the next.
func TestClockSetBack(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := &book{}
		store := webhooktest.NewStore()
		ahead := time.Now().Add(48 * time.Hour)
		for i := range 20 {
			d := ledger.Delivery{
				Delivery: jobs.Delivery{
					ID: jobs.NewID(), URL: "https://example.com/hook", Event: jobs.HookEnded, State: jobs.DeliveryPending, CreatedAt: ahead, NextAt: ahead.Add(time.Duration(i)),
				},
				Tenant: "t", Format: jobs.FormatStandard, Target: "t https://example.com",
			}
			if err := store.AddDelivery(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		_, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
		time.Sleep(time.Minute)
		synctest.Wait()
		stop()
		if n := len(b.all()); n != 20 {
			t.Errorf("%d deliveries of 20 were made", n)
		}
	})
}

// TestRetryAfter: a server that says when is not tried before, whatever the schedule says; not for longer than a day.
func TestRetryAfter(t *testing.T) {
	for _, tt := range []struct {
		name, header string
		status       int
		least, most  time.Duration
	}{
		{"none", "", 500, 4 * time.Second, 6 * time.Second},
		{"too many requests", "", 429, 4 * time.Second, 6 * time.Second},
		{"seconds", "90", 429, 90 * time.Second, 91 * time.Second},
		{"of another status", "90", 503, 90 * time.Second, 91 * time.Second},
		{"less than the schedule", "1", 503, 4 * time.Second, 6 * time.Second},
		{"a date", "Sat, 01 Jan 2000 00:10:00 GMT", 503, 599 * time.Second, 601 * time.Second}, // a bubble's time begins with 2000
		{"for ever", "99999999", 503, 24*time.Hour - time.Second, 24*time.Hour + time.Second},
		{"nonsense", "soon", 503, 4 * time.Second, 6 * time.Second},
		{"the past", "Sat, 01 Jan 1990 00:10:00 GMT", 503, 4 * time.Second, 6 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				b := &book{answer: func(n int) *http.Response {
					if n == 1 {
						return says(tt.status, "Retry-After", tt.header)
					}
					return says(204)
				}}
				s, _ := one(t, b, 48*time.Hour)
				tries := b.all()
				if len(tries) != 2 {
					t.Fatalf("%d tries", len(tries))
				}
				if got := tries[1].at.Sub(tries[0].at); got < tt.least || got > tt.most {
					t.Errorf("tried again after %v, want %v to %v", got, tt.least, tt.most)
				}
				if d := only(t, s, "t"); d.State != jobs.DeliveryDelivered || d.Error != "" {
					t.Errorf("delivery %+v", d)
				}
			})
		})
	}
}

// TestThrottled: what else waits for a server that says when waits too.
func TestThrottled(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		began := time.Now()
		b := &book{answer: func(n int) *http.Response {
			if n == 1 {
				return says(429, "Retry-After", "60")
			}
			return says(200)
		}}
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
		add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
		for range 20 {
			store.Hook(ended("t"))
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if n := len(b.all()); n != 1 {
			t.Errorf("%d tries within the minute", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(b.all()); n != 21 {
			t.Errorf("%d tries after %v, want 21", n, time.Since(began))
		}
		stop()
	})
}

// TestGone: 410 is the end, of the delivery and of the endpoint; what waits fails, and can be replayed when somebody has enabled it.
func TestGone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var back atomic.Bool
		b := &book{takes: time.Second, answer: func(int) *http.Response { // longer than it takes to make deliveries of what happened
			if !back.Load() {
				return says(410)
			}
			return says(200)
		}}
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
		e, _ := add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
		began := time.Now()
		for range 10 {
			store.Hook(ended("t"))
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(b.all()); n != 1 {
			t.Errorf("%d tries, want 1", n)
		}
		e, err := s.Get(t.Context(), "t", e.ID)
		if err != nil || e.Enabled || e.DisabledReason != "answered 410" || e.DisabledAt.IsZero() {
			t.Errorf("endpoint %+v, %v", e, err)
		}
		store.Hook(ended("t")) // of which it is not told
		time.Sleep(time.Minute)
		list, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryFailed}})
		if err != nil || len(list) != 10 {
			t.Fatalf("%d have failed, %v", len(list), err)
		}
		if _, err := s.Redeliver(t.Context(), "t", jobs.RedeliverRequest{ID: list[0].ID}); jobs.ErrorOf(err).Code != jobs.CodeConflict {
			t.Errorf("replayed to one that is disabled: %v", err)
		}
		back.Store(true)
		if e, err := s.Enable(t.Context(), "t", e.ID); err != nil || !e.Enabled || e.DisabledReason != "" {
			t.Errorf("enabled %+v, %v", e, err)
		}
		n, err := s.Redeliver(t.Context(), "t", jobs.RedeliverRequest{Since: began, Endpoint: e.ID})
		if err != nil || n != 10 {
			t.Errorf("%d replayed, %v", n, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		list, _, err = s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{States: []jobs.DeliveryState{jobs.DeliveryDelivered}})
		if err != nil || len(list) != 10 {
			t.Errorf("%d are delivered, %v", len(list), err)
		}
		first := b.all()[0].id
		tries := 0
		for _, r := range b.all() {
			if r.id == first {
				tries++
			}
		}
		if tries != 2 {
			t.Errorf("%d tries under the id of the first, want 2", tries)
		}
		stop()
	})
}

// TestGoneCallback: a callback's 410 ends that delivery.
func TestGoneCallback(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := &book{answer: func(int) *http.Response { return says(410) }}
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
		store.Hook(ended("t", jobs.Callback{URL: "https://example.com/done"}))
		time.Sleep(100 * time.Hour)
		stop()
		if d := only(t, s, "t"); d.State != jobs.DeliveryFailed || d.Attempts != 1 || d.Endpoint != "" {
			t.Errorf("delivery %+v", d)
		}
	})
}

// TestFailsForDays: an endpoint that takes nothing for five days is disabled; one that is told so seldom that nobody can know is not.
func TestFailsForDays(t *testing.T) {
	for _, tt := range []struct {
		name     string
		every    time.Duration
		times    int
		disabled bool
	}{{"told every hour", time.Hour, 150, true}, {"told every week", 7 * 24 * time.Hour, 3, false}} {
		t.Run(tt.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				b := &book{answer: func(int) *http.Response { return says(502) }}
				store := webhooktest.NewStore()
				s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
				e, _ := add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
				began := time.Now()
				disabledAfter := time.Duration(0)
				for range tt.times {
					store.Hook(ended("t"))
					time.Sleep(tt.every)
					synctest.Wait()
					got, err := s.Get(t.Context(), "t", e.ID)
					if err != nil {
						t.Fatal(err)
					}
					if !got.Enabled {
						disabledAfter = got.DisabledAt.Sub(began)
						break
					}
				}
				if tt.disabled != (disabledAfter != 0) || tt.disabled && (disabledAfter < 5*24*time.Hour || disabledAfter > 6*24*time.Hour) {
					t.Errorf("disabled after %v", disabledAfter)
				}
				stop()
			})
		})
	}
}

// TestCircuit: after five failures nothing is sent but a probe now and then; what waits costs no tries, and is delivered when it is well again.
func TestCircuit(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var well atomic.Bool
		b := &book{answer: func(int) *http.Response {
			if well.Load() {
				return says(200)
			}
			return says(503)
		}}
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
		e, _ := add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
		for range 100 {
			store.Hook(ended("t"))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(b.all()); n != 5 {
			t.Errorf("%d tries before the circuit opened, want 5", n)
		}
		got, err := s.Get(t.Context(), "t", e.ID)
		if err != nil || got.Circuit != "open" || got.RetryAt.Before(time.Now()) || got.FailingSince.IsZero() {
			t.Errorf("endpoint %+v, %v", got, err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(b.all()); n < 10 || n > 16 {
			t.Errorf("%d tries within an hour, want about 13: a probe after 30 s, 1, 2, 4, 8 and then every 10 min", n)
		}
		well.Store(true)
		time.Sleep(2 * time.Hour) // those that were probes are due by then too
		synctest.Wait()
		list, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		once := 0
		for _, d := range list {
			if d.State != jobs.DeliveryDelivered {
				t.Errorf("delivery %+v", d)
			}
			if d.Attempts == 1 {
				once++
			}
		}
		if len(list) != 100 || once < 84 {
			t.Errorf("%d deliveries, %d of them by the first try", len(list), once)
		}
		if got, err := s.Get(t.Context(), "t", e.ID); err != nil || got.Circuit != "closed" || !got.FailingSince.IsZero() {
			t.Errorf("endpoint %+v, %v", got, err)
		}
		stop()
	})
}

// TestForget: the log of what has ended goes after its time, what waits stays.
func TestForget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := &book{answer: func(n int) *http.Response {
			if n == 1 {
				return says(200)
			}
			return says(500)
		}}
		store := webhooktest.NewStore()
		s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip), Keep: time.Hour})
		add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/hook"})
		store.Hook(ended("t"))
		time.Sleep(time.Minute)
		store.Hook(ended("t"))
		time.Sleep(50 * time.Minute)
		count := func() (states []jobs.DeliveryState) {
			synctest.Wait()
			list, _, err := s.Deliveries(t.Context(), "t", jobs.DeliveriesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				states = append(states, d.State)
			}
			return states
		}
		if d := cmp.Diff([]jobs.DeliveryState{"pending", "delivered"}, count()); d != "" {
			t.Error(d)
		}
		time.Sleep(30 * time.Minute)
		if d := cmp.Diff([]jobs.DeliveryState{"pending"}, count()); d != "" {
			t.Error(d)
		}
		stop()
	})
}
