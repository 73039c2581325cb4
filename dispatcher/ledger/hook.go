package ledger

import "context"

// Webhooks are the operations on what webhooks are to tell of. The transitions write it, each with its change: where the job has callbacks
// of its own, or its tenant an endpoint that is enabled.
type Webhooks interface {
	// Hooks gives state changes that nothing has been made of, the oldest first.
	Hooks(ctx context.Context, limit int) ([]Hook, error)
	// Hooked has a token when there may be more of them.
	Hooked() <-chan struct{}
}
