//go:build race

package bubble

import (
	"runtime"
	"sync"
)

var (
	mu      sync.Mutex
	bubbles int
	procs   int // as it was before the first of them
)

func oneProcessor() (restore func()) {
	mu.Lock()
	defer mu.Unlock()
	if bubbles++; bubbles == 1 {
		procs = runtime.GOMAXPROCS(1)
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if bubbles--; bubbles == 0 {
			runtime.GOMAXPROCS(procs)
		}
	}
}
