package bubble_test

import (
	"sync"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/bubble"
)

// With the race detector and two processors synctest's own Test ends this in a SIGSEGV.
func TestTimersThatFireAtOnce(t *testing.T) {
	for range 20 {
		bubble.Test(t, func(*testing.T) {
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for range 500 {
						time.AfterFunc(0, func() {})
					}
				})
			}
			all.Wait()
		})
	}
}
