package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// roleTime bounds a question to a role: one that asks the records' server takes
	// up to 2 s if that is away.
	roleTime = 4 * time.Second
	// maxRoleText bounds a role's answer in bytes: some 30 KiB.
	maxRoleText = 4 << 20
	// maxRoles bounds the roles that are asked, all at once.
	maxRoles = 64
	// listensWithin is how long after its socket is there a role listens at the
	// latest: at an older one that refuses, nobody ever will.
	listensWithin = time.Minute
)

// ServeRole answers scrapes with a role's numbers, at a socket of its own in a folder, until ctx ends. Who may enter
// the folder may read them.
func ServeRole(ctx context.Context, dir, role string, all ...prometheus.Collector) error {
	registry := prometheus.NewPedanticRegistry()
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("metrics of the %s: %w", role, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	at, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	l, err := listenIn(at, role+"-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		return fmt.Errorf("metrics of the %s: %w", role, err)
	}
	server := &http.Server{Handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}), ReadTimeout: roleTime, WriteTimeout: 2 * roleTime}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// listenIn makes a socket in a folder. Its name is there once it takes
// connections: one that refuses them is taken for that of a process that was
// killed.
func listenIn(dir *os.File, name string) (net.Listener, error) {
	path, early := filepath.Join(dir.Name(), name), filepath.Join(dir.Name(), unready+name)
	_ = os.Remove(early) // of one that was killed and had our number, as in a container
	l, err := net.Listen("unix", socketIn(dir, unready+name))
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // that is another name
	if err := os.Rename(early, path); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(early))
	}
	return named{l, path}, nil
}

// unready begins the names of sockets that take no connections yet.
const unready = "."

// named is a listener that takes its socket's name away when it closes.
type named struct {
	net.Listener
	path string
}

func (n named) Close() error {
	_ = os.Remove(n.path) // or it was closed before
	return n.Listener.Close()
}

// socketIn is a socket's path that is short, however long the folder's is.
func socketIn(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// Roles gives what ServeRole offers in a folder, each process's series with its
// name as the label process. Sockets of processes that were killed are
// passed over, and removed once they are old.
func Roles(dir string) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		at, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer at.Close()
		names, err := at.Readdirnames(maxRoles)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, unready) })
		slices.Sort(names)
		answers := make([]map[string]*dto.MetricFamily, len(names))
		up := make([]bool, len(names))
		var work sync.WaitGroup
		for i, name := range names {
			work.Go(func() {
				var err error
				answers[i], err = askRole(at, name)
				up[i] = err == nil
				if errors.Is(err, syscall.ECONNREFUSED) {
					removeOld(filepath.Join(dir, name))
					names[i] = ""
				}
			})
		}
		work.Wait()
		return merged(names, answers, up), nil
	})
}

// removeOld removes a socket at which nobody listens, unless somebody has just
// made it, perhaps in the place of the one that refused.
func removeOld(path string) {
	if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > listensWithin {
		_ = os.Remove(path)
	}
}

// askRole reads one role's numbers.
func askRole(dir *os.File, name string) (map[string]*dto.MetricFamily, error) {
	ctx, cancel := context.WithTimeout(context.Background(), roleTime)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socketIn(dir, name))
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://role/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(io.LimitReader(resp.Body, maxRoleText))
}

// merged joins what roles have said, and whether they have.
func merged(names []string, answers []map[string]*dto.MetricFamily, up []bool) []*dto.MetricFamily {
	const upName = "thaw_role_up"
	gaugeType := dto.MetricType_GAUGE
	help, upper := "1, or 0 if the role does not answer.", upName
	all := map[string]*dto.MetricFamily{upName: {Name: &upper, Help: &help, Type: &gaugeType}}
	for i, name := range names {
		if name == "" {
			continue
		}
		value := 0.0
		if up[i] {
			value = 1
		}
		all[upName].Metric = append(all[upName].Metric, &dto.Metric{Gauge: &dto.Gauge{Value: &value}, Label: []*dto.LabelPair{processLabel(name)}})
		for key, family := range answers[i] {
			for _, m := range family.Metric {
				m.Label = append(m.Label, processLabel(name))
				slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
			}
			if all[key] == nil {
				all[key] = family
			} else {
				all[key].Metric = append(all[key].Metric, family.Metric...)
			}
		}
	}
	if len(all[upName].Metric) == 0 {
		delete(all, upName)
	}
	var list []*dto.MetricFamily
	for _, family := range all {
		list = append(list, family)
	}
	slices.SortFunc(list, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return list
}

func processLabel(name string) *dto.LabelPair {
	label := "process"
	return &dto.LabelPair{Name: &label, Value: &name}
}
