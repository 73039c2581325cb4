package webhook_test

import (
	"context"
	"sync"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
)

// spreads keeps how many deliveries came in one transaction.
type spreads struct {
	*webhooktest.Store
	mu   sync.Mutex
	each []int
}

func (s *spreads) SpreadHooks(ctx context.Context, list []ledger.Spread) error {
	n := 0
	for _, l := range list {
		n += len(l.Deliveries)
	}
	s.mu.Lock()
	s.each = append(s.each, n)
	s.mu.Unlock()
	return s.Store.SpreadHooks(ctx, list)
}

// A tenant with many endpoints, of whose jobs many end, does not fill a transaction with what they are to be told.
func TestSpreadInParts(t *testing.T) {
	r := receive(t, nil)
	store := &spreads{Store: webhooktest.NewStore()}
	c := webhook.Config{Store: store, Guard: local(t, r)}
	before, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	const endpoints, hooks = 50, 10
	for range endpoints {
		add(t, before, "t", jobs.EndpointRequest{URL: r.URL})
	}
	for range hooks {
		store.Hook(ended("t"))
	}
	run(t, c)
	eventually(t, "all are told", func() bool { return len(r.requests()) == endpoints*hooks })
	store.mu.Lock()
	defer store.mu.Unlock()
	sum := 0
	for _, n := range store.each {
		sum += n
		if n > 128 {
			t.Errorf("%d deliveries in one transaction", n)
		}
	}
	if sum != endpoints*hooks {
		t.Errorf("%d deliveries, want %d", sum, endpoints*hooks)
	}
}
