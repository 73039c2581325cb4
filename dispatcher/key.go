package dispatcher

import (
	"fmt"
	"strings"
	"time"
)

// The ledger keeps the idempotency keys that clients choose beside those that the dispatcher makes. What a client chooses is kept under
// another name where it looks like one of the latter: else its job could take the place of a schedule's, or of a batch's.
const (
	ofSchedules = "schedule/"
	ofBatches   = "batch/"
	// ofClients is before keys of clients that begin with any of these. No client of before is known to have begun one so.
	ofClients = "\x01"
)

// scheduleKey is the key of a schedule's job for one of its times.
func scheduleKey(name string, at time.Time) string {
	return fmt.Sprintf("%s%s/%d", ofSchedules, name, at.Unix())
}

// batchKey is the key of a batch's i-th job that has none of its own; batch is the batch's key, or its id.
func batchKey(batch string, i int) string { return fmt.Sprintf("%s%s/%d", ofBatches, batch, i) }

// clientKey gives what the ledger keeps of a key that a client has chosen, two of two keys; and how a dispatcher of before, which made no
// difference, has kept it where that was another.
func clientKey(chosen string) (key, before string) {
	switch {
	case strings.HasPrefix(chosen, ofSchedules), strings.HasPrefix(chosen, ofBatches):
		return ofClients + chosen, chosen
	case strings.HasPrefix(chosen, ofClients):
		return ofClients + chosen, ""
	}
	return chosen, ""
}
