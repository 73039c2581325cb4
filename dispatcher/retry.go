package dispatcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

const (
	// maxRetryPause bounds the pause between attempts.
	maxRetryPause = 30 * time.Second
	// poisonous is on how many workers a job may end its VMM or its agent before it is held to be the cause: it is not given a further one.
	poisonous = 2
)

// retry decides whether another attempt follows a result, and which; nil for none. Where a job that our own failures ended is held to be
// their cause, the result's reason says so.
func (d *Dispatcher) retry(ctx context.Context, e *ledger.Entry, r *jobs.Result) (*ledger.Retry, error) {
	rules, err := d.rules(ctx, e)
	if err != nil {
		return nil, err
	}
	next := ledger.Retry{InfraLeft: e.InfraLeft, UserLeft: e.UserLeft, FailedOn: e.FailedOn}
	budget := &next.UserLeft
	if r.Class == jobs.ClassInfra {
		budget = &next.InfraLeft
	}
	if (r.Ending == jobs.VMFailed || r.Ending == jobs.AgentLost) && e.Worker != "" && !slices.Contains(next.FailedOn, e.Worker) {
		next.FailedOn = append(slices.Clone(next.FailedOn), e.Worker)
	}
	if !rules.Retries(r) || *budget <= 0 {
		return nil, nil //nolint:nilnil // no attempt, and nothing has failed
	}
	if len(next.FailedOn) >= poisonous {
		r.Reason = fmt.Sprintf("%s (it is not tried again: it has ended machines on the workers %s, and may be the cause)", r.Reason, strings.Join(next.FailedOn, ", "))
		return nil, nil //nolint:nilnil // the same
	}
	*budget--
	next.NotBefore = micro(time.Now().Add(d.backoff(e.Attempt)))
	next.Attempt = jobs.Attempt{Attempt: e.Attempt, Worker: e.Worker, Ending: r.Ending, Class: r.Class, Reason: r.Reason, LeasedAt: e.LeasedAt.UTC(), EndedAt: r.EndedAt}
	return &next, nil
}

// rules gives a job's own; nil where it has none.
func (d *Dispatcher) rules(ctx context.Context, e *ledger.Entry) (*jobs.Retry, error) {
	if !e.Rules {
		return nil, nil //nolint:nilnil // the rules of a job without are the zero ones
	}
	j, err := d.cfg.Store.Get(ctx, e.Tenant, e.ID)
	if err != nil {
		return nil, fmt.Errorf("read the retry rules of %s: %w", e.ID, err)
	}
	return j.Spec.Retry, nil
}

// backoff is the pause after an attempt: it doubles with each, and not all that one failure ended come back at once.
func (d *Dispatcher) backoff(attempt int) time.Duration {
	most := d.mostBackoff(attempt)
	return most - rand.N(most/5+1)
}

func (d *Dispatcher) mostBackoff(attempt int) time.Duration {
	return min(d.cfg.RetryBase<<min(attempt-1, 10), maxRetryPause) * 5 / 4
}
