package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/paddockvm/paddock/jobs"
)

// bootID is another at each of a host's starts (random(4)).
const bootID = "/proc/sys/kernel/random/boot_id"

// instanceOf names the process behind a state directory: one that comes back has the name that it had, and its place in the fleet at once. A
// copy of the directory has another name, be it beside it or on a host that was made from the same disk: two workers that live would take the one
// place from each other, and their attempts with it, for ever.
func instanceOf(dir string) (string, error) {
	id, err := idOf(dir)
	if err != nil {
		return "", err
	}
	at, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile(bootID)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%s|%s", id, boot, at))
	return hex.EncodeToString(sum[:16]), nil
}

// idOf gives what a directory has been given at random.
func idOf(dir string) (string, error) {
	name := filepath.Join(dir, "instance")
	b, err := os.ReadFile(name)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := jobs.NewID()
	return id, os.WriteFile(name, []byte(id), 0o600)
}
