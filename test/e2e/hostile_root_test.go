package e2e

import (
	"slices"
	"testing"

	"github.com/paddockvm/paddock/jobs"
)

// Root in a machine can do what it likes to that machine and the agent in it. Both are the job's own: they end within its limits plus
// 2 s, in a typed ending, and neither the host nor the next job is hurt. Where the agent can no longer be spoken to, that is all that
// the worker knows: agent_lost, which would be tried again.
func TestHostileRoot(t *testing.T) {
	c := up(t)
	// The wall limits, in ms, of what should end by itself, for which it has time however slow this machine is, and of what should not.
	const byItself, byLimit = 60_000, 2500
	root := func(image string, wall int64, steps ...jobs.Step) jobs.Spec {
		for i := range steps {
			steps[i].User = "root"
		}
		return jobs.Spec{Image: image, Steps: steps, Limits: jobs.Limits{WallMS: wall, CPUMS: 60_000}, InfraRetries: new(int)}
	}
	sh := func(wall int64, lines ...string) jobs.Spec {
		var steps []jobs.Step
		for _, l := range lines {
			steps = append(steps, jobs.Step{Shell: l})
		}
		return root("base", wall, steps...)
	}
	py := func(wall int64, source string, then ...jobs.Step) jobs.Spec {
		return root("python", wall, append([]jobs.Step{{Cmd: "python3", Args: []string{"-c", source}}}, then...)...)
	}
	for _, tt := range []struct {
		name string
		spec jobs.Spec
		want []jobs.Ending // any of them
	}{
		// The agent as a process.
		{"stops the agent", sh(byLimit, "kill -STOP 1; sleep 100"), []jobs.Ending{jobs.TimeLimit}},
		{"aborts the agent", sh(byItself, "kill -QUIT 1; sleep 100"), []jobs.Ending{jobs.VMExited}},
		{"traces the agent", py(byLimit, `
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
for t in os.listdir("/proc/1/task"):
    if libc.ptrace(16, int(t), 0, 0): # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "attach")
time.sleep(1000)
`), []jobs.Ending{jobs.TimeLimit}},
		{"writes over the agent", py(byItself, `
import time
text = next(l for l in open("/proc/1/maps") if "r-x" in l).split()[0].split("-")
first, last = (int(x, 16) for x in text)
with open("/proc/1/mem", "r+b", buffering=0) as f:
    f.seek(first)
    f.write(bytes(last - first))
time.sleep(1000)
`), []jobs.Ending{jobs.VMExited}},
		{"speaks for the agent", py(byItself, `
import ctypes, os
libc = ctypes.CDLL(None)
agent = os.pidfd_open(1)
fd = next(fd for fd in os.listdir("/proc/1/fd") if "vport" in os.readlink("/proc/1/fd/" + fd))
port = libc.syscall(438, agent, int(fd), 0) # pidfd_getfd
while True:
    os.write(port, b"\xff" * 4096)
`), []jobs.Ending{jobs.AgentLost}},
		{"takes the agent's descriptors", sh(byItself, "prlimit --pid 1 --nofile=3:3; exit 0", "exit 0"), []jobs.Ending{jobs.AgentLost}},
		{
			"takes the agent's memory", sh(byLimit, "prlimit --pid 1 --as=1:1; head -c 8M /dev/zero; sleep 100"),
			[]jobs.Ending{jobs.TimeLimit, jobs.VMExited},
		},
		{"takes the agent's port away", sh(byLimit, "cd /sys/bus/virtio/drivers/virtio_console && ls -d virtio* > unbind; sleep 100"), []jobs.Ending{jobs.TimeLimit}},
		{"writes to the agent's port", sh(byItself, "for p in /dev/vport*; do echo nonsense > $p; done; exit 3"), []jobs.Ending{jobs.Exited}},

		// The cgroups that hold the program.
		{"unmounts the cgroups", sh(byLimit, "umount -l /sys/fs/cgroup; sleep 100 & exit 0"), []jobs.Ending{jobs.TimeLimit}},
		{"leaves its cgroup", sh(byLimit, "echo $$ > /sys/fs/cgroup/cgroup.procs; sleep 100"), []jobs.Ending{jobs.TimeLimit}},
		{
			"leaves its cgroup and forks", sh(byLimit, "echo $$ > /sys/fs/cgroup/cgroup.procs; f() { f | f & }; f; sleep 100"),
			[]jobs.Ending{jobs.TimeLimit, jobs.VMExited},
		},
		{
			"leaves its cgroup and eats memory",
			sh(byLimit, "echo $$ > /sys/fs/cgroup/cgroup.procs; echo -1000 > /proc/self/oom_score_adj; exec tail /dev/zero"),
			[]jobs.Ending{jobs.TimeLimit, jobs.VMExited},
		},
		{"freezes its cgroup", sh(byLimit, "cd /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup) && echo 1 > cgroup.freeze; sleep 100"), []jobs.Ending{jobs.TimeLimit}},
		{"removes the next cgroup", py(byItself, `
import glob, os, time
open("/sys/fs/cgroup/cgroup.procs", "w").write(str(os.getpid()))
if os.fork() == 0:
    for fd in range(3):
        os.dup2(os.open("/dev/null", os.O_RDWR), fd)
    while True:
        for d in glob.glob("/sys/fs/cgroup/exec-*"):
            try:
                os.rmdir(d)
            except OSError:
                pass
time.sleep(0.5)
`, jobs.Step{Shell: "exit 0"}), []jobs.Ending{jobs.AgentLost, jobs.StartFailed, jobs.Exited}}, // as the race goes
		{"forbids cgroups", sh(byItself, "echo 0 > /sys/fs/cgroup/cgroup.max.descendants", "exit 0"), []jobs.Ending{jobs.AgentLost}},

		// The machine.
		{
			"takes the processor", sh(byLimit, "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; exec chrt -f 99 sh -c 'while :; do :; done'"),
			[]jobs.Ending{jobs.TimeLimit},
		},
		{"kills everything", sh(byItself, "echo i > /proc/sysrq-trigger; sleep 100"), []jobs.Ending{jobs.Signaled}},
		{"fills every place", sh(byItself, "for d in /run /dev/shm /dev; do head -c 32M /dev/zero > $d/full; done; exit 3"), []jobs.Ending{jobs.Exited}},
		{"makes the root read-only", sh(byItself, "mount -o remount,ro /; echo u > /proc/sysrq-trigger; exit 3"), []jobs.Ending{jobs.Exited}},
		{"unmounts everything", sh(byItself, "umount -a -l; exit 3"), []jobs.Ending{jobs.Exited}},
		{
			"writes over its disk", sh(byLimit, "head -c 16M /dev/urandom > /dev/vdb; sync; echo 3 > /proc/sys/vm/drop_caches; ls -R /work > /dev/null; exit 3"),
			[]jobs.Ending{jobs.Exited, jobs.DiskLimit, jobs.TimeLimit}, // as the kernel takes it
		},
		{"turns the clock", sh(byLimit, "date -s 2001-01-01; date -s 2037-01-01; sleep 100"), []jobs.Ending{jobs.TimeLimit}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			still := standstill(t)
			r := runJob(t, c, tt.spec)
			stood := still()
			if !slices.Contains(tt.want, r.Ending) {
				t.Errorf("ended %s %s (%s), want %v; stderr %q", r.Ending, r.Limit, r.Reason, tt.want, lastStderr(r))
			}
			wantInTime(t, r, int64(len(tt.spec.Steps))*tt.spec.Limits.WallMS, stood)
			t.Logf("%s %s after %.0f ms, and %.0f ms for the machine's end", r.Ending, r.Reason, r.Phases.RunMS, r.Phases.DestroyMS)
			wantSuccess(t, runJob(t, c, jobs.Spec{Image: "base", Steps: []jobs.Step{{Shell: "exit 0"}}}))
		})
	}
}

// The user that programs run as has no way to the agent, to the disks, or out of its cgroup.
func TestSandboxUserIsHeld(t *testing.T) {
	c := up(t)
	r := runJob(t, c, python(`
import ctypes, glob, os, signal
libc = ctypes.CDLL(None, use_errno=True)

def call(n):
    if n < 0:
        raise OSError(ctypes.get_errno(), "refused")

def write(name, what=b"0"):
    with open(name, "wb", buffering=0) as f:
        f.write(what)

own = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip().split(":")[2]
tries = {
    "signal the agent": lambda: os.kill(1, signal.SIGQUIT),
    "trace the agent": lambda: call(libc.ptrace(16, 1, 0, 0)),
    "read the agent": lambda: open("/proc/1/mem", "rb"),
    "see the agent's descriptors": lambda: os.listdir("/proc/1/fd"),
    "change the agent's limits": lambda: __import__("resource").prlimit(1, 7, (3, 3)),
    "trigger sysrq": lambda: write("/proc/sysrq-trigger", b"c"),
    "change the kernel": lambda: write("/proc/sys/kernel/panic"),
    "leave the cgroup": lambda: write("/sys/fs/cgroup/cgroup.procs", b"%d" % os.getpid()),
    "raise the limit": lambda: write(own + "/memory.max", b"max"),
    "make a cgroup": lambda: os.mkdir(own + "/below"),
    "mount": lambda: call(libc.mount(b"none", b"/work", b"tmpfs", 0, None)),
    "set the clock": lambda: __import__("time").clock_settime(0, 0),
    "write to the root": lambda: write("/etc/passwd"),
    "write to /run": lambda: write("/run/x"),
    "make a device": lambda: os.mknod("/work/mem", 0o20666, os.makedev(1, 1)),
}
for dev in glob.glob("/dev/vd*") + glob.glob("/dev/vport*") + ["/dev/mem", "/dev/kmsg", "/dev/console"]:
    tries["write to " + dev] = lambda dev=dev: write(dev)
done = []
for name, attempt in tries.items():
    try:
        attempt()
        done.append(name)
    except (OSError, ValueError):
        pass
print(len(tries) > 17, done)
`))
	wantSuccess(t, r)
	if got := stdout(t, r); got != "True []\n" {
		t.Errorf("what was possible: %s", got)
	}
}

// A disk that one step filled and cleared again is not why a later step failed.
func TestDiskThatWasFull(t *testing.T) {
	c := up(t)
	r := runJob(t, c, jobs.Spec{
		Image: "base", Limits: jobs.Limits{WallMS: 120_000, DiskBytes: 16 << 20, FileBytes: 1 << 30},
		Steps: []jobs.Step{{Shell: "head -c 64M /dev/zero > big; sleep 0.5; rm big; exit 0"}, {Shell: "exit 3"}},
	})
	if r.Ending != jobs.Exited || r.ExitCode == nil || *r.ExitCode != 3 {
		t.Errorf("ended %s %s (%s)", r.Ending, r.Limit, r.Reason)
	}
	if len(r.Steps) == 2 && len(r.Steps[0].Stderr.Data()) == 0 {
		t.Error("the disk was not full")
	}
}
