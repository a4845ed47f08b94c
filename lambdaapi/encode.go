package lambdaapi

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Write answers a request with an operation's output, a pointer to its shape,
// or nil if it has none. The error is the connection's; an output of a kind that
// cannot be written is a programmer's error.
func Write(w http.ResponseWriter, requestID string, op Op, out any) error {
	status := op.status()
	w.Header().Set("X-Amzn-Requestid", requestID)
	w.Header().Set("Content-Type", "application/json")
	if out == nil {
		w.Header().Del("Content-Type")
		w.WriteHeader(status)
		return nil
	}
	v := reflect.ValueOf(out).Elem()
	var payload []byte
	inBody, whole := false, false
	for i := range v.NumField() {
		where, name, _ := strings.Cut(v.Type().Field(i).Tag.Get("in"), ":")
		switch member := v.Field(i); where {
		case "status":
			if !missing(member) {
				status = int(reflect.Indirect(member).Int())
			}
		case "header":
			if !missing(member) {
				w.Header().Set(name, reflect.Indirect(member).String())
			}
		case "body":
			payload, whole = member.Bytes(), true
		default:
			inBody = true
		}
	}
	switch {
	case status == http.StatusNoContent || !whole && !inBody:
		w.Header().Del("Content-Type")
		w.WriteHeader(status)
		return nil
	case !whole:
		payload = marshal(out)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
	w.WriteHeader(status)
	_, err := w.Write(payload)
	return err
}

// marshal writes JSON as AWS does: text is not escaped for HTML.
func marshal(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("lambdaapi: " + err.Error())
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// status is that of the operation's answer.
func (op Op) status() int {
	for i := range routes {
		if routes[i].op == op {
			return routes[i].status
		}
	}
	panic("lambdaapi: no operation " + string(op))
}

// WriteError tells the client of an error: one of this package, or any that has
// methods Code and Message that give a Kind's name and text. Others become a
// ServiceException that says nothing of what happened.
func WriteError(w http.ResponseWriter, requestID string, err error) {
	e := asError(err)
	f, _ := e.Kind.form()
	body := map[string]string{f.message: e.Message}
	if f.typed {
		body["Type"] = "User"
		if f.status >= 500 {
			body["Type"] = "Service"
		}
	}
	if f.reasoned && e.Reason != "" {
		body["Reason"] = e.Reason
	}
	h := w.Header()
	if f.retry && e.RetryAfter > 0 {
		seconds := math.Ceil(float64(e.RetryAfter) / float64(time.Second))
		h.Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Errortype", string(e.Kind))
	h.Set("X-Amzn-Requestid", requestID)
	data := marshal(body)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(f.status)
	w.Write(data)
}
