package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/vmm"
	"github.com/paddockvm/paddock/vmm/qemu"
	"github.com/paddockvm/paddock/worker/jail"
)

// finding is one line of the doctor.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, degraded or missing
	Detail string `json:"detail"`
	// Advice says what to do, where something can be done.
	Advice string `json:"advice,omitempty"`
}

func doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this host can and cannot do, and what to do about it", Args: cobra.NoArgs,
		Long: "Tries what Paddock needs. Exits with 1 where something is missing without which it cannot run machines.",
	}
	out := outputFlag(c)
	flags := addClientFlags(c)
	state := c.Flags().String("state-dir", defaultStateDir(), "the state directory")
	c.RunE = func(c *cobra.Command, _ []string) error {
		list := examine(c.Context(), *state, *flags.nats)
		err := show(c.OutOrStdout(), *out, list, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			for _, f := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\n", f.Status, f.Check, f.Detail)
				if f.Advice != "" {
					fmt.Fprintf(w, "\t\t→ %s\n", f.Advice)
				}
			}
			return w.Flush()
		})
		if err != nil {
			return err
		}
		for _, f := range list {
			if f.Status == "missing" {
				return exitError{1}
			}
		}
		return nil
	}
	return c
}

func examine(ctx context.Context, state, nats string) []finding {
	return append([]finding{
		examineRoot(), examineJail(ctx), examineTools(), examineDisk(state), examineImages(state), examineNATS(ctx, nats),
	}, examineQEMU(ctx)...)
}

func examineRoot() finding {
	if os.Geteuid() == 0 {
		return finding{"user", "ok", "root", ""}
	}
	return finding{"user", "degraded", fmt.Sprintf("uid %d: no jail, no image builds", os.Geteuid()), "run as root or with sudo; inside, nothing of a machine runs as root"}
}

func examineQEMU(ctx context.Context) []finding {
	dir, err := os.MkdirTemp("", "pd-")
	if err != nil {
		return []finding{{"qemu", "missing", err.Error(), ""}}
	}
	defer os.RemoveAll(dir)
	d, err := qemu.New(qemu.Config{RunDir: dir, Launcher: vmm.Direct{}})
	if err != nil {
		return []finding{{"qemu", "missing", err.Error(), "apt-get install qemu-system-x86"}}
	}
	defer d.Close() //nolint:errcheck // it has no templates
	caps, err := d.Probe(ctx)
	if err != nil {
		return []finding{{"qemu", "missing", err.Error(), ""}}
	}
	list := []finding{{"qemu", "ok", fmt.Sprintf("%s, %s", caps.Version, caps.Machine), ""}}
	if caps.Accel == "kvm" {
		return append(list, finding{"kvm", "ok", fmt.Sprintf("a guest ran in %s", caps.BootProbe.Round(time.Millisecond)), ""})
	}
	why := "no /dev/kvm"
	if _, err := os.Stat("/dev/kvm"); err == nil {
		why = "/dev/kvm is there, but no guest runs with it"
	}
	return append(list, finding{
		"kvm", "degraded", why + "; machines run under TCG: correct, 10 to 50 times slower, and QEMU's project gives no security promise for it",
		"use a host with hardware virtualisation, or enable nested virtualisation in the one below",
	})
}

func examineJail(ctx context.Context) finding {
	l, err := jail.New(jail.Config{Self: []string{"/proc/self/exe", "jail-exec"}})
	if err != nil {
		return finding{"jail", "degraded", err.Error(), "run as root"}
	}
	p, err := l.Launch(ctx, vmm.Command{Name: "doctor", Path: "/bin/true"})
	if err == nil {
		<-p.Done()
		err = p.Err()
	}
	if err != nil {
		return finding{"jail", "missing", err.Error(), "--jail off starts machines without it"}
	}
	return finding{"jail", "degraded", "namespaces, own root and uid, no capabilities, resource limits; missing: " + strings.Join(l.Degraded(), ", "), ""}
}

func examineTools() finding {
	var missing []string
	for tool, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "mkfs.ext4": "e2fsprogs", "depmod": "kmod", "xz": "xz-utils"} {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if _, err := os.Stat("/usr/sbin/" + tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return finding{"image tools", "degraded", "images cannot be built", "apt-get install " + strings.Join(missing, " ")}
	}
	return finding{"image tools", "ok", "images can be built", ""}
}

func examineDisk(state string) finding {
	dir := state
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return finding{"disk", "missing", err.Error(), ""}
	}
	free := st.Bavail * uint64(st.Bsize) >> 20
	f := finding{"disk", "ok", fmt.Sprintf("%d MiB free for %s", free, state), ""}
	if free < 4096 {
		f.Status, f.Advice = "degraded", "free some, or choose another --state-dir: an image takes about 400 MiB, events up to 8 GiB"
	}
	return f
}

func examineImages(state string) finding {
	dir := filepath.Join(state, "images")
	if _, err := os.Stat(dir); err != nil {
		return finding{"images", "ok", "none yet; paddock up builds what it needs", ""}
	}
	s, err := images.Open(dir)
	var list []images.Image
	if err == nil {
		list, err = s.List()
	}
	if err != nil {
		return finding{"images", "degraded", err.Error(), ""}
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	return finding{"images", "ok", strings.Join(append(names, fmt.Sprintf("%d in %s", len(list), dir)), ", "), ""}
}

func examineNATS(ctx context.Context, url string) finding {
	c, err := client.Connect(url)
	if err != nil {
		return finding{"server", "ok", "none at " + url + " (not running, or elsewhere)", ""}
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := c.Get(ctx, "none"); err != nil && !strings.Contains(err.Error(), "no job") {
		return finding{"server", "degraded", errors.Join(err).Error(), "start paddock up"}
	}
	return finding{"server", "ok", "a dispatcher answers at " + url, ""}
}

func jailCommand() *cobra.Command {
	return &cobra.Command{
		Use: "jail-exec", Hidden: true, Args: cobra.ExactArgs(1),
		Run: func(_ *cobra.Command, args []string) { jail.Child(args[0]) },
	}
}
