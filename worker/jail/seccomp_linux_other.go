//go:build linux && !amd64

package jail

import "errors"

func (*setup) seccomp() error { return nil }

func seccompLack() error { return errors.New("there is a filter for x86_64 only") }
