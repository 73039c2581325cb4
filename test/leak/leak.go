// Package leak tells at the end of a package's tests whether goroutines of theirs are left.
//
// It imports goleak.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is longer than a disk or a processor holds up what is about to end.
const patience = time.Minute

// VerifyTestMain is goleak's with more patience: that waits for less than half a second, and the goroutines of a server that has been shut down may
// be writing to a disk that stalls for seconds.
func VerifyTestMain(m *testing.M, options ...goleak.Option) {
	code := m.Run()
	if code == 0 {
		if err := Find(options...); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left of successful tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Find is goleak's, with more patience.
func Find(options ...goleak.Option) error { return find(patience, options...) }

func find(patience time.Duration, options ...goleak.Option) error {
	for end := time.Now().Add(patience); ; {
		err := goleak.Find(options...)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// NATS are goroutines that NATS' own code leaves now and then.
func NATS() []goleak.Option {
	return []goleak.Option{
		// nats.go v1.55.0: where an object is stored so quickly that the Put's own context is cleaned up before this goroutine runs, it waits on a
		// channel that is nil by then.
		goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"),
		// nats-server v2.15.2: fileStore.stop closes all blocks, lets go of its lock to write its state, and only then takes no more messages; a block
		// that one of those begins nobody closes.
		goleak.IgnoreTopFunction("github.com/nats-io/nats-server/v2/server.(*msgBlock).flushLoop"),
	}
}
