//go:build linux && !amd64

package stub

import "errors"

func (*Setup) seccomp() error { return nil }

func FilterLack() error { return errors.New("there is a filter for x86_64 only") }
