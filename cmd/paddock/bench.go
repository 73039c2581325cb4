package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure this host: latency, restore, throughput, the queue, density, snapshots",
		Long: "Measures, and prints medians; -o json and --json print every sample and what the host is. Each starts what it needs and ends it.\n" +
			"docs/benchmarks.md says what the figures mean.",
	}
	c.AddCommand(benchBoot(), benchLatency(), benchThroughput(), benchRestore(), benchDensity(), benchNetwork(), benchJail(), benchSnapshot(), benchQueue(), benchAsynq(), benchShow())
	return c
}

func benchShow() *cobra.Command {
	c := &cobra.Command{Use: "show FILE…", Short: "Print what --json has written as tables", Args: arguments(1, -1)}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, files []string) error {
		var reports []*benchReport
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			r := &benchReport{}
			if err := json.Unmarshal(b, r); err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			reports = append(reports, r)
		}
		return show(c.OutOrStdout(), *out, reports, func(w io.Writer) error {
			for _, r := range reports {
				if err := r.table(w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return c
}

// benchOutput adds -o to a measurement, and --json for -o json; valid when the flags have been read.
func benchOutput(c *cobra.Command) func() string {
	out := outputFlag(c)
	asJSON := c.Flags().Bool("json", false, "print every sample: -o json")
	c.MarkFlagsMutuallyExclusive("json", "output")
	return func() string {
		if *asJSON {
			return "json"
		}
		return *out
	}
}

// benchReport is what a measurement gives.
type benchReport struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	Host benchHost `json:"host"`
	// Settings are the measurement's own; Figures single results; Samples every value, in the order in which they were taken.
	Settings map[string]any       `json:"settings"`
	Figures  map[string]float64   `json:"figures"`
	Samples  map[string][]float64 `json:"samples,omitempty"`
}

// benchHost is where it was measured.
type benchHost struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	QEMU      string `json:"qemu,omitempty"`
	Go        string `json:"go"`
	Paddock   string `json:"paddock"`
}

func newReport(name string) *benchReport {
	return &benchReport{
		Name: name, At: time.Now().UTC().Truncate(time.Second), Host: describeHost(),
		Settings: map[string]any{}, Figures: map[string]float64{}, Samples: map[string][]float64{},
	}
}

func describeHost() benchHost {
	h := benchHost{CPUs: runtime.NumCPU(), MemoryMiB: hostMemoryMiB(), Go: runtime.Version(), Paddock: version, CPU: firstField("/proc/cpuinfo", "model name")}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := exec.Command("qemu-system-x86_64", "-version").Output(); err == nil {
		line, _, _ := strings.Cut(string(b), "\n")
		h.QEMU = strings.TrimPrefix(line, "QEMU emulator version ")
	}
	return h
}

func firstField(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// add takes a duration as a sample, in milliseconds.
func (r *benchReport) add(name string, d time.Duration) {
	r.Samples[name] = append(r.Samples[name], float64(d.Microseconds())/1000)
}

// print writes the report: with its samples, or as a table.
func (r *benchReport) print(w io.Writer, format string) error {
	for name, v := range r.Samples {
		r.Figures[name+" p50"] = percentile(v, 50)
		r.Figures[name+" p99"] = percentile(v, 99)
	}
	return show(w, format, r, r.table)
}

func (r *benchReport) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "%s\t%s, %d CPUs, %d MiB, Linux %s\n", r.Name, r.Host.CPU, r.Host.CPUs, r.Host.MemoryMiB, r.Host.Kernel)
	for _, k := range slices.Sorted(maps.Keys(r.Settings)) {
		fmt.Fprintf(t, "%s\t%v\n", k, r.Settings[k])
	}
	for _, k := range slices.Sorted(maps.Keys(r.Figures)) {
		if name, ok := strings.CutSuffix(k, " p50"); ok && r.Samples[name] != nil {
			v := r.Samples[name]
			fmt.Fprintf(t, "%s\tp50 %.2f\tp90 %.2f\tp99 %.2f\tof %d\n", name, percentile(v, 50), percentile(v, 90), percentile(v, 99), len(v))
		} else if name, ok := strings.CutSuffix(k, " p99"); !ok || r.Samples[name] == nil {
			fmt.Fprintf(t, "%s\t%.2f\n", k, r.Figures[k])
		}
	}
	return t.Flush()
}

// percentile gives the p-th percentile by the nearest rank, 0 of none.
func percentile(v []float64, p int) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	return v[min(len(v)-1, len(v)*p/100)]
}
