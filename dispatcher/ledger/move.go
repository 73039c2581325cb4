package ledger

import (
	"context"
	"errors"
	"io"
)

// Movable is a ledger that can be taken from one database to another, of another kind too.
type Movable interface {
	// Export writes all that is in the ledger at one moment, as lines of JSON: what an equal ledger exports is the same, byte for byte.
	// Who leads is not in it.
	Export(ctx context.Context, w io.Writer) error
	// Import reads what an Export of the same schema has written into an empty ledger, and checks that it is whole, in one transaction:
	// after an error there is nothing of it. ErrNotEmpty where there is something already. It needs the leadership.
	Import(ctx context.Context, r io.Reader) error
}

// ErrNotEmpty is returned by Import.
var ErrNotEmpty = errors.New("the ledger is not empty")
