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
