package jobs

import (
	"fmt"
	"runtime/debug"
)

// BugError is a panic while a request was read: our own fault, which this request has found, and any that are like it.
type BugError struct {
	Panic any
	Stack []byte
}

func (b *BugError) Error() string { return fmt.Sprintf("panic: %v\n%s", b.Panic, b.Stack) }

// caught makes an error of a panic. It is for what reads and checks what somebody has sent, and that alone: such a function holds no lock and changes
// nothing but what it gives, so that nothing is left half done. Elsewhere a panic ends the process, and that is well: with a lock held, or
// the matcher's order half changed, it would live on and serve nobody, and let no other take its place.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = &BugError{p, debug.Stack()}
	}
}
