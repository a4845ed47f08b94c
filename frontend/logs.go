package frontend

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"thaw/invokewire"
	"thaw/lambdaapi"
)

const (
	// logsTarget begins the names of the operations of CloudWatch Logs.
	logsTarget = "Logs_20140328."
	// mostEvents is how many log events one answer has at most: CloudWatch's.
	mostEvents = 10_000
	// mostLogItems is the same for groups and streams.
	mostLogItems = 50
	// maxLogsBody bounds a request for logs.
	maxLogsBody = 1 << 20
)

// logError is an error of the Logs API. Its status is 400, but for those of signatures.
type logError struct{ kind, text string }

func (e *logError) Error() string { return e.kind + ": " + e.text }

func badParameter(format string, args ...any) error {
	return &logError{"InvalidParameterException", fmt.Sprintf(format, args...)}
}

// logsRequest has the members of all operations that are answered.
type logsRequest struct {
	LogGroupName        string   `json:"logGroupName"`
	LogGroupIdentifier  string   `json:"logGroupIdentifier"`
	LogGroupNamePrefix  string   `json:"logGroupNamePrefix"`
	LogStreamName       string   `json:"logStreamName"`
	LogStreamNames      []string `json:"logStreamNames"`
	LogStreamNamePrefix string   `json:"logStreamNamePrefix"`
	OrderBy             string   `json:"orderBy"`
	Descending          bool     `json:"descending"`
	StartTime           *int64   `json:"startTime"`
	EndTime             *int64   `json:"endTime"`
	StartFromHead       bool     `json:"startFromHead"`
	FilterPattern       string   `json:"filterPattern"`
	Limit               int      `json:"limit"`
	NextToken           string   `json:"nextToken"`
}

// serveLogs answers as much of CloudWatch Logs as `aws logs tail` and the like need.
func (f *Frontend) serveLogs(w http.ResponseWriter, r *http.Request, requestID string) {
	out, done, err := f.logs(r)
	defer done()
	if err == nil {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		text, _ := json.Marshal(out) // never fails
		f.write(w, append(text, '\n'))
		return
	}
	var refused *logError
	if !errors.As(err, &refused) {
		lambdaapi.WriteError(w, requestID, err) // its forms suit JSON 1.1 too
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Errortype", refused.kind)
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": refused.kind, "message": refused.text})
}

// logs reads a request, and answers it in its turn, which lasts until done.
func (f *Frontend) logs(r *http.Request) (out any, done func(), err error) {
	done = func() {}
	body, err := f.buffers.readAtMost(r, maxLogsBody)
	if err != nil {
		return nil, done, bodyError(err, maxLogsBody)
	}
	account, err := f.authenticate(r, body, "logs")
	if err != nil {
		return nil, done, err
	}
	var q logsRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, done, badParameter("The request is not understood.")
	}
	if q.Limit < 0 || q.Limit > mostEvents {
		return nil, done, badParameter("1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value less than or equal to %d", q.Limit, mostEvents)
	}
	waiting, cancel := context.WithTimeout(r.Context(), logTime)
	defer cancel()
	turn, err := f.reads.take(waiting, account)
	if err != nil {
		return nil, done, &logError{"ThrottlingException", "Rate exceeded"}
	}
	out, err = f.answerLogs(r, account, q)
	return out, turn, err
}

func (f *Frontend) answerLogs(r *http.Request, account string, q logsRequest) (any, error) {
	switch op := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), logsTarget); op {
	case "DescribeLogGroups":
		return f.describeGroups(r.Context(), account, q)
	case "DescribeLogStreams":
		return f.describeStreams(r.Context(), account, q)
	case "FilterLogEvents":
		return f.filterEvents(r.Context(), account, q)
	case "GetLogEvents":
		return f.getEvents(r.Context(), account, q)
	default:
		return nil, &logError{"UnknownOperationException", "This operation of CloudWatch Logs is not offered here."}
	}
}

// logGroup is a group as clients see it.
type logGroup struct {
	Name    string `json:"logGroupName"`
	ARN     string `json:"arn"`
	Created int64  `json:"creationTime"`
}

func (f *Frontend) describeGroups(ctx context.Context, account string, q logsRequest) (any, error) {
	groups, err := f.view.groups(ctx, account)
	if err != nil {
		return nil, err
	}
	list := []logGroup{}
	next := ""
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		if !strings.HasPrefix(name, q.LogGroupNamePrefix) || q.NextToken != "" && name <= q.NextToken {
			continue
		}
		if len(list) == pageOf(q.Limit, mostLogItems) {
			next = list[len(list)-1].Name
			break
		}
		list = append(list, logGroup{Name: name, ARN: f.groupARN(account, name) + ":*", Created: groups[name].created.UnixMilli()})
	}
	return withToken("logGroups", list, next), nil
}

func pageOf(asked, most int) int {
	if asked == 0 {
		return most
	}
	return min(asked, most)
}

func withToken(name string, list any, next string) map[string]any {
	m := map[string]any{name: list}
	if next != "" {
		m["nextToken"] = next
	}
	return m
}

func (f *Frontend) groupARN(account, name string) string {
	return "arn:aws:logs:" + f.options.Region + ":" + account + ":log-group:" + name
}

// functionsOf gives the functions that write to a group. Those that are gone
// have left their logs under the usual name, which leads nowhere while there is a
// function that has another one.
func (f *Frontend) functionsOf(ctx context.Context, account string, q logsRequest) ([]string, error) {
	group := q.LogGroupName
	if group == "" {
		group = q.LogGroupIdentifier
		if rest, ok := strings.CutPrefix(group, f.groupARN(account, "")); ok {
			group = strings.TrimSuffix(rest, ":*")
		}
	}
	if group == "" || len(group) > 512 {
		return nil, badParameter("A log group must be named.")
	}
	groups, err := f.view.groups(ctx, account)
	if err != nil {
		return nil, err
	}
	if g, ok := groups[group]; ok {
		return g.functions, nil
	}
	name, ok := strings.CutPrefix(group, invokewire.LogPrefix)
	for _, g := range groups {
		ok = ok && !slices.Contains(g.functions, name)
	}
	if !ok {
		return nil, &logError{"ResourceNotFoundException", "The specified log group does not exist."}
	}
	streams, err := f.workers.streams(ctx, url.Values{"account": {account}, "function": {name}})
	if err != nil || len(streams) == 0 {
		return nil, &logError{"ResourceNotFoundException", "The specified log group does not exist."}
	}
	return []string{name}, nil
}

// logStream is a stream as clients see it.
type logStream struct {
	Name    string `json:"logStreamName"`
	ARN     string `json:"arn"`
	Created int64  `json:"creationTime"`
	First   int64  `json:"firstEventTimestamp,omitempty"`
	Last    int64  `json:"lastEventTimestamp,omitempty"`
	Written int64  `json:"lastIngestionTime,omitempty"`
	Bytes   int64  `json:"storedBytes"`
}

func (f *Frontend) describeStreams(ctx context.Context, account string, q logsRequest) (any, error) {
	names, err := f.functionsOf(ctx, account, q)
	if err != nil {
		return nil, err
	}
	list := []logStream{}
	for _, name := range names {
		streams, err := f.workers.streams(ctx, url.Values{"account": {account}, "function": {name}})
		if err != nil {
			return nil, err
		}
		for _, s := range streams {
			if strings.HasPrefix(s.Name, q.LogStreamNamePrefix) {
				arn := f.groupARN(account, cmp.Or(q.LogGroupName, invokewire.LogPrefix+name)) + ":log-stream:" + s.Name
				list = append(list, logStream{s.Name, arn, s.Created, s.First, s.Last, s.Last, s.Bytes})
			}
		}
	}
	slices.SortFunc(list, func(a, b logStream) int {
		c := strings.Compare(a.Name, b.Name)
		if q.OrderBy == "LastEventTime" {
			c = cmp.Or(cmp.Compare(a.Last, b.Last), c)
		}
		if q.Descending {
			return -c
		}
		return c
	})
	first, _ := strconv.Atoi(q.NextToken)
	first = max(0, min(first, len(list)))
	end := min(len(list), first+pageOf(q.Limit, mostLogItems))
	next := ""
	if end < len(list) {
		next = strconv.Itoa(end)
	}
	return withToken("logStreams", list[first:end], next), nil
}

// logEvent is a line as clients see it.
type logEvent struct {
	Stream   string `json:"logStreamName,omitempty"`
	Time     int64  `json:"timestamp"`
	Message  string `json:"message"`
	Ingested int64  `json:"ingestionTime"`
	ID       string `json:"eventId,omitempty"`
}

// readEvents reads a group's events since a time, in order: those that workers
// still have, and give in one answer, which are the last ones. With until, they are
// the first ones, and all that there are to the ms that whole is.
func (f *Frontend) readEvents(ctx context.Context, account string, q logsRequest, since, until int64) (list []invokewire.LogEvent, whole int64, err error) {
	names, err := f.functionsOf(ctx, account, q)
	if err != nil {
		return nil, 0, err
	}
	whole = math.MaxInt64
	for _, name := range names {
		values := url.Values{"account": {account}, "function": {name}, "since": {strconv.FormatInt(since, 10)}}
		if q.LogStreamName != "" {
			values.Set("stream", q.LogStreamName)
		}
		if until > 0 {
			values.Set("until", strconv.FormatInt(until, 10))
		}
		events, to, err := f.workers.logs(ctx, values)
		if err != nil {
			return nil, 0, err
		}
		list, whole = append(list, events...), min(whole, to)
	}
	slices.SortStableFunc(list, func(a, b invokewire.LogEvent) int {
		return cmp.Or(cmp.Compare(a.Time, b.Time), strings.Compare(a.Stream, b.Stream))
	})
	return list, whole, nil
}

// cursor is where an answer ended: n events of the time ms were told.
type cursor struct {
	ms int64
	n  int
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d/%d", c.ms, c.n))
}

func parseCursor(token string) (cursor, error) {
	var c cursor
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err == nil {
		_, err = fmt.Sscanf(string(b), "%d/%d", &c.ms, &c.n)
	}
	if err != nil || c.n < 0 {
		return c, badParameter("The specified nextToken is invalid.")
	}
	return c, nil
}

func (f *Frontend) filterEvents(ctx context.Context, account string, q logsRequest) (any, error) {
	match, err := parsePattern(q.FilterPattern)
	if err != nil {
		return nil, err
	}
	var from cursor
	if q.StartTime != nil {
		from.ms = *q.StartTime
	}
	if q.NextToken != "" {
		if from, err = parseCursor(q.NextToken); err != nil {
			return nil, err
		}
	}
	// Lines of this moment would come in any order: who asks on from the newest
	// time that was told, as clients do, would miss some.
	until := time.Now().UnixMilli()
	if q.EndTime != nil {
		until = min(until, *q.EndTime)
	}
	all, whole, err := f.readEvents(ctx, account, q, from.ms, max(1, until))
	if err != nil {
		return nil, err
	}
	list, at, same := []logEvent{}, cursor{}, map[string]int{}
	more := false
	for _, e := range all {
		if e.Time < from.ms || e.Time > min(until, whole) {
			continue
		}
		if e.Time != at.ms {
			at = cursor{ms: e.Time}
			clear(same)
		}
		if len(list) == pageOf(q.Limit, mostEvents) {
			more = true
			break
		}
		at.n++
		same[e.Stream]++
		if e.Time == from.ms && at.n <= from.n || !q.wantsStream(e.Stream) || !match(e.Message) {
			continue
		}
		list = append(list, logEvent{e.Stream, e.Time, e.Message, e.Time, fmt.Sprintf("%020d/%s/%d", e.Time, e.Stream, same[e.Stream])})
	}
	next := ""
	switch {
	case more && at != from:
		next = at.String()
	case !more && whole < until:
		next = cursor{ms: whole + 1}.String()
	}
	return withToken("events", list, next), nil
}

func (q *logsRequest) wantsStream(name string) bool {
	return strings.HasPrefix(name, q.LogStreamNamePrefix) && (len(q.LogStreamNames) == 0 || slices.Contains(q.LogStreamNames, name))
}

func (f *Frontend) getEvents(ctx context.Context, account string, q logsRequest) (any, error) {
	if q.LogStreamName == "" {
		return nil, badParameter("A log stream must be named.")
	}
	all, _, err := f.readEvents(ctx, account, q, 0, 0)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, &logError{"ResourceNotFoundException", "The specified log stream does not exist."}
	}
	all = slices.DeleteFunc(all, func(e invokewire.LogEvent) bool {
		return q.StartTime != nil && e.Time < *q.StartTime || q.EndTime != nil && e.Time >= *q.EndTime
	})
	begin, end, err := window(q, len(all))
	if err != nil {
		return nil, err
	}
	list := []logEvent{}
	for _, e := range all[begin:end] {
		list = append(list, logEvent{Time: e.Time, Message: e.Message, Ingested: e.Time})
	}
	return map[string]any{"events": list, "nextForwardToken": fmt.Sprintf("f/%d", end), "nextBackwardToken": fmt.Sprintf("b/%d", begin)}, nil
}

// window chooses what GetLogEvents tells of n events. A token that leads nowhere
// further is given back as it is, by which clients know that they are at the end.
func window(q logsRequest, n int) (begin, end int, err error) {
	size := pageOf(q.Limit, mostEvents)
	direction, at, ok := strings.Cut(q.NextToken, "/")
	k, bad := strconv.Atoi(at)
	switch {
	case q.NextToken == "" && q.StartFromHead:
		return 0, min(n, size), nil
	case q.NextToken == "":
		return max(0, n-size), n, nil
	case !ok || bad != nil || k < 0 || direction != "f" && direction != "b":
		return 0, 0, badParameter("The specified nextToken is invalid.")
	case direction == "f":
		begin = min(k, n)
		return begin, min(n, begin+size), nil
	}
	end = min(k, n)
	return max(0, end-size), end, nil
}

// parsePattern makes a filter of words: all must be in a line, one of those with
// a question mark, none of those with a minus. Quotes hold words together.
func parsePattern(pattern string) (func(string) bool, error) {
	pattern = strings.TrimSpace(pattern)
	if strings.HasPrefix(pattern, "{") || strings.HasPrefix(pattern, "[") || strings.HasPrefix(pattern, "%") {
		return nil, badParameter("Filter patterns over JSON, columns or regular expressions are not offered here: use words.")
	}
	var all, some, none []string
	for pattern != "" {
		kind := pattern[0]
		if kind == '?' || kind == '-' {
			pattern = pattern[1:]
		}
		word, rest, err := patternWord(pattern)
		if err != nil {
			return nil, err
		}
		pattern = strings.TrimSpace(rest)
		switch kind {
		case '?':
			some = append(some, word)
		case '-':
			none = append(none, word)
		default:
			all = append(all, word)
		}
	}
	return func(line string) bool {
		in := func(word string) bool { return strings.Contains(line, word) }
		return !slices.ContainsFunc(none, in) && (len(some) == 0 || slices.ContainsFunc(some, in)) &&
			!slices.ContainsFunc(all, func(word string) bool { return !in(word) })
	}, nil
}

// patternWord takes the first word or quoted text off a pattern.
func patternWord(pattern string) (word, rest string, err error) {
	if quoted, ok := strings.CutPrefix(pattern, `"`); ok {
		word, rest, ok = strings.Cut(quoted, `"`)
		if !ok {
			return "", "", badParameter("Invalid filter pattern: a quote is not closed.")
		}
		return word, rest, nil
	}
	word, rest, _ = strings.Cut(pattern, " ")
	if word == "" {
		return "", "", badParameter("Invalid filter pattern.")
	}
	return word, rest, nil
}
