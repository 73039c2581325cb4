package bus

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// leader is what a leading dispatcher says of itself.
type leader struct {
	Term int64 `json:"term"`
}

// Announce tells the fleet's dispatchers that a term has its leader.
func (b *Bus) Announce(_ context.Context, term int64) error {
	data, err := encode(leader{term})
	if err != nil {
		return err
	}
	return b.nc.Publish(jobs.LeaderSubject, data)
}

// announcedPending is how many announcements may wait to be looked at; only the latest matters.
const announcedPending = 16

// Announced calls heard with each term that is announced, until ctx ends.
func (b *Bus) Announced(ctx context.Context, heard func(term int64)) error {
	said := make(chan *nats.Msg, announcedPending)
	sub, err := b.nc.ChanSubscribe(jobs.LeaderSubject, said)
	if err != nil {
		return fmt.Errorf("nats: listen to other dispatchers: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-said:
			var l leader
			if json.Unmarshal(m.Data, &l) == nil {
				heard(l.Term)
			}
		}
	}
}
