//go:build cloud

package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"thaw/host"
	"thaw/text"
)

// Rows of the experiment.
const (
	rowSmall       = "small"
	rowLarge       = "large"
	rowLargeMemory = "large-memory"
	rowZip         = "zip"
)

const (
	// maxParallel is the account's limit of concurrent executions.
	maxParallel = 1000
	maxRounds   = 1000
	// maxHold leaves a start its time within the longest timeout.
	maxHold = 10 * time.Minute
)

// coldRow is what one row gave. Times are in ms.
type coldRow struct {
	Name     string `json:"name"`
	Source   string `json:"source"`
	MemoryMB int    `json:"memory_mb"`
	Cold     int    `json:"cold"`   // invokes that were the first of their log stream
	Warm     int    `json:"warm"`   // the others
	Failed   int    `json:"failed"` // invokes that ended with an error, or not in time

	Init     summary `json:"init"`     // of cold ones
	Total    summary `json:"total"`    // of cold ones, from sending to the end
	Platform summary `json:"platform"` // of cold ones: total without init and handler
	// CPU is the time that all processors of the machine were busy, for one invoke.
	CPU float64 `json:"cpu_ms"`
	// Starts counts by kind, Stages are medians of what workers have measured.
	Starts map[string]int     `json:"starts"`
	Stages map[string]float64 `json:"stages_ms"`
	// Touched is what agents gave first touches of, by tier; Fetched what came from
	// beyond the worker's cache, prefetches included.
	Touched tierCounts `json:"touched"`
	Fetched tierCounts `json:"fetched"`
	// CacheLeft is what the worker's cache held when the row began: pinned bytes.
	CacheLeft int64 `json:"cache_left_bytes"`

	inits, totals, platforms []float64
	busy                     float64 // ms
	stages                   map[string][]float64
}

// tierCounts are chunks and bytes by the tier that gave them.
type tierCounts struct {
	Cache  amount `json:"cache"`
	Zone   amount `json:"zone"`
	Origin amount `json:"origin"`
}

type amount struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"`
}

func (a *amount) add(chunks, bytes int64) { a.Chunks, a.Bytes = a.Chunks+chunks, a.Bytes+bytes }

func (a amount) String() string { return fmt.Sprintf("%d, %s", a.Chunks, text.Bytes(a.Bytes)) }

// check refuses what cannot be measured, and fills in the rows.
func (c *benchColdstartCmd) check() error {
	sources := map[string]string{rowSmall: c.Small, rowLarge: c.Large, rowLargeMemory: c.Large, rowZip: c.Zip}
	if len(c.Rows) == 0 {
		for _, row := range []string{rowSmall, rowLarge, rowLargeMemory, rowZip} {
			if sources[row] != "" {
				c.Rows = append(c.Rows, row)
			}
		}
	}
	if len(c.Rows) == 0 {
		return errors.New("nothing to measure: give --small, --large or --zip")
	}
	for _, row := range c.Rows {
		switch source, known := sources[row]; {
		case !known:
			return fmt.Errorf("--rows: %q is none of small, large, large-memory, zip", row)
		case source == "":
			return fmt.Errorf("--rows: %s has no source: give --%s", row, strings.TrimSuffix(row, "-memory"))
		}
	}
	if c.Zip != "" && !strings.HasSuffix(c.Zip, ".zip") {
		return fmt.Errorf("--zip %s: want a .zip file", c.Zip)
	}
	for flag, v := range map[string][2]int{"parallel": {c.Parallel, maxParallel}, "rounds": {c.Rounds, maxRounds}, "memory": {c.Memory, 10240}, "large-memory": {c.LargeMemory, 10240}} {
		if v[0] < 1 || v[0] > v[1] {
			return fmt.Errorf("--%s %d: want 1 to %d", flag, v[0], v[1])
		}
	}
	if c.Hold < 0 || c.Hold > maxHold {
		return fmt.Errorf("--hold %v: want 0s to %v", c.Hold, maxHold)
	}
	return nil
}

// coldBench is the experiment under way.
type coldBench struct {
	*benchColdstartCmd
	*Globals
	*platform
	fleet  *joined
	host   *host.Host
	worker string // its address
	memory int64  // bytes that the worker has for instances
	run    string // ends the names of functions
}

// Run measures.
func (c *benchColdstartCmd) Run(ctx context.Context, g *Globals) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := c.open(ctx, g)
	if err != nil {
		return err
	}
	defer b.fleet.conn.Close()
	var rows []*coldRow
	for _, name := range c.Rows {
		row, err := b.measure(ctx, name)
		if err != nil {
			return fmt.Errorf("row %s: %w", name, plain(err))
		}
		rows = append(rows, row)
	}
	if c.SVG != "" {
		if err := os.WriteFile(c.SVG, drawColdstarts(rows), 0o644); err != nil {
			return err
		}
	}
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(map[string]any{
			"parallel": c.Parallel, "rounds": c.Rounds, "hold_ms": c.Hold.Milliseconds(), "by": c.By, "start": c.Start, "rows": rows,
		})
	}
	return printColdstarts(g, rows)
}

// open finds the platform and its one worker, which has to be of this machine.
func (c *benchColdstartCmd) open(ctx context.Context, g *Globals) (*coldBench, error) {
	b := &coldBench{benchColdstartCmd: c, Globals: g, run: strings.ToLower(rand.Text()[:8])}
	var err error
	if b.host, err = host.Open(g.State); err != nil {
		return nil, err
	}
	if b.platform, err = g.platform(); err != nil {
		return nil, err
	}
	if b.fleet, err = new(fleetFlags).join(ctx, g); err != nil {
		return nil, err
	}
	workers, err := b.fleet.someWorkers(ctx)
	switch {
	case err != nil:
	case len(workers) > 1:
		err = fmt.Errorf("%d workers are there: what starts on others cannot be measured", len(workers))
	default:
		b.worker, b.memory = workers[0].Address, workers[0].Memory
		return b, nil
	}
	b.fleet.conn.Close()
	return nil, err
}

// summarize fills in what follows from the samples.
func (r *coldRow) summarize() {
	r.Init, r.Total, r.Platform = summarize(r.inits), summarize(r.totals), summarize(r.platforms)
	if n := r.Cold + r.Warm + r.Failed; n > 0 {
		r.CPU = r.busy / float64(n)
	}
	for stage, values := range r.stages {
		r.Stages[stage] = summarize(values).Median
	}
}

func printColdstarts(g *Globals, rows []*coldRow) error {
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROW\tMEMORY\tMS\tCOUNT\tMIN\tMAX\tMEAN\tMEDIAN\tP95")
	for _, r := range rows {
		for _, s := range []struct {
			name string
			summary
		}{{"init", r.Init}, {"total", r.Total}, {"platform", r.Platform}} {
			fmt.Fprintf(w, "%s\t%d MB\t%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\n", r.Name, r.MemoryMB, s.name, s.Count, s.Min, s.Max, s.Mean, s.Median, s.P95)
		}
	}
	fmt.Fprintln(w, "\nROW\tCOLD\tWARM\tFAILED\tCPU MS EACH\tTOUCHED: CACHE\tZONE\tORIGIN\tFETCHED: ZONE\tORIGIN")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.0f\t%v\t%v\t%v\t%v\t%v\n", r.Name, r.Cold, r.Warm, r.Failed, r.CPU, r.Touched.Cache, r.Touched.Zone, r.Touched.Origin, r.Fetched.Zone, r.Fetched.Origin)
	}
	fmt.Fprintln(w, "\nROW\tSTARTS\tSTAGES, MEDIAN MS")
	for _, r := range rows {
		var starts, stages []string
		for _, kind := range slices.Sorted(maps.Keys(r.Starts)) {
			starts = append(starts, fmt.Sprintf("%d %s", r.Starts[kind], kind))
		}
		for _, stage := range slices.Sorted(maps.Keys(r.Stages)) {
			stages = append(stages, fmt.Sprintf("%s %.1f", stage, r.Stages[stage]))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, strings.Join(starts, ", "), strings.Join(stages, ", "))
	}
	return w.Flush()
}
