package cloudhypervisor

import (
	"os"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// scratchCopy is a private copy of a disk image. Whoever has its descriptor may open it anew, as any uid.
func scratchCopy(image, dir string) (*os.File, error) {
	f, err := hostfile.Scratch(image, dir)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o666); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openOr opens a file to read; where there is none to open, /dev/null stands in its place.
func openOr(path string) (*os.File, error) {
	if path == "" {
		path = os.DevNull
	}
	return os.Open(path)
}
