package cluster

import (
	"fmt"
	"strings"
	"sync"
)

// maxLine is the longest line of a server that is passed on.
const maxLine = 500

// journal takes what the server would write to its log: what is fatal is kept
// for whoever started it, warnings and errors are passed on, and the rest is
// dropped. The secrets that the server knows never get through.
type journal struct {
	warn    func(string)
	secrets []string

	mu    sync.Mutex // guards first
	first string     // fatal error
}

// Noticef drops news.
func (*journal) Noticef(string, ...any) {}

// Debugf drops details.
func (*journal) Debugf(string, ...any) {}

// Tracef drops messages, which may hold payloads.
func (*journal) Tracef(string, ...any) {}

// Warnf passes a warning on, but for those that tell what is so on purpose.
func (j *journal) Warnf(format string, v ...any) {
	switch {
	case strings.HasPrefix(format, "Plaintext passwords"): // it is an HMAC; bcrypt would take longer than a cold start
	case strings.HasPrefix(format, `Clients that are not using "TLS Handshake First"`): // all of ours do
	default:
		j.pass(format, v)
	}
}

// Errorf passes an error on.
func (j *journal) Errorf(format string, v ...any) { j.pass(format, v) }

// Fatalf keeps an error that keeps the server from running.
func (j *journal) Fatalf(format string, v ...any) {
	line := j.pass(format, v)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.first == "" {
		j.first = line
	}
}

func (j *journal) fatal() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first
}

func (j *journal) pass(format string, v []any) string {
	line := j.clean(fmt.Sprintf(format, v...))
	if j.warn != nil {
		j.warn(line)
	}
	return line
}

// clean makes one line of s that holds no secret.
func (j *journal) clean(s string) string {
	for _, secret := range j.secrets {
		if secret != "" {
			s = strings.ReplaceAll(s, secret, "…")
		}
	}
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), maxLine)]
}
