// Package bubble is testing/synctest for tests that also run with the race detector.
//
// A bubble has one race context for all its timers, and since some of them fire on the goroutine that sets or reads them, two
// processors may use it at once, which ends the test's process in a SIGSEGV within ThreadSanitizer (https://go.dev/issue/78156, seen with
// Go 1.26.8). With one processor that cannot be, for such a timer fires where nothing is preempted; and the detector needs no second one: it
// reports what no order forbids, not what happened at the same time.
package bubble

import (
	"testing"
	"testing/synctest"
)

// Test is synctest.Test. With the race detector the process has one processor until the last bubble has ended.
func Test(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	defer oneProcessor()()
	synctest.Test(t, f)
}
