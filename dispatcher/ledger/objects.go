package ledger

import (
	"context"

	"github.com/paddockvm/paddock/jobs"
)

// Objects tells which objects are needed.
type Objects interface {
	// NamedObjects calls do with each object that is named, and whose it is, some several times: by jobs that have not ended and by dead
	// ones, which may be repeated, of what goes in; by all jobs that are kept, of what came out; and by schedules. It does not take long
	// where few jobs name any.
	NamedObjects(ctx context.Context, do func(tenant string, ref jobs.ObjectRef)) error
}
