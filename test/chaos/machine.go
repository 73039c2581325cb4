package chaos

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Some jobs run in real machines: of one worker, which has a pool of its own and place for one machine. Where there is no KVM QEMU
// translates their code, and such a job takes a second or more. Its program reaches nobody but Paddock, so that the journal knows nothing
// of it.

// machinePool is that worker's.
const machinePool = "machines"

// ErrNoMachines says that this host lacks what real machines take.
var ErrNoMachines = errors.New("real machines cannot run here")

// CanMachines tells whether real machines can run here, of an image store's "base": ErrNoMachines where not, with the reason.
func CanMachines(imageDir string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: that takes root", ErrNoMachines)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return fmt.Errorf("%w: %w", ErrNoMachines, err)
	}
	if _, err := os.Stat(filepath.Join(imageDir, "images", "base.json")); err != nil {
		return fmt.Errorf("%w: the image base is not built: %w", ErrNoMachines, err)
	}
	return nil
}

// planMachines makes the worker with real machines.
func (f *fleet) planMachines() error {
	p, err := f.planWorker(fmt.Sprintf("worker-%d", workerCount+1))
	if err != nil {
		return err
	}
	p.argv = append(p.argv, "--driver", "qemu", "--pool", machinePool, "--cgroup-parent", "/"+f.cgroup(), "--vcpus", "1", "--memory-mib", "512", "--ready", "1", "--ready-most", "1",
		"--prepared", "0")
	return nil
}

// cgroup is the parent of its machines' cgroups, by a name that is this run's alone.
func (f *fleet) cgroup() string { return "paddock-chaos-" + filepath.Base(filepath.Dir(f.cfg.Dir)) }
