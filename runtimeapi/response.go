package runtimeapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"thaw/runtimeapi/http1"
)

const (
	modeHeader = "lambda-runtime-function-response-mode"
	// errorBodyTrailer holds an error's JSON as base64: in a header's place it
	// could hold no line ends.
	errorBodyTrailer = "lambda-runtime-function-error-body"
	// causeType is that of an error's JSON with its cause for X-Ray, which is not
	// the caller's.
	causeType = "application/vnd.aws.lambda.error.cause+json"
	// copySize is how much of an answer is held at a time, in bytes.
	copySize = 64 << 10
)

// enter checks the id and takes the runtime from Running to another state, or
// gives the refusal.
func (a *API) enter(id string, to state) (*Invoke, *http1.Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var refusal http1.Answer
	switch {
	case a.current == nil || !a.current.delivered || a.current.RequestID != id:
		refusal = refuse(400, "InvalidRequestID", "Invalid request ID")
	case a.runtime != running:
		refusal = a.refuseState(to)
	default:
		a.runtime = to
		return &a.current.Invoke, nil
	}
	return nil, &refusal
}

// sent notes that the answer is out, whole or not.
func (a *API) sent() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runtime = responseSent
}

// respond is POST invocation/ID/response.
func (a *API) respond(r *http1.Request, id string) http1.Answer {
	i, refusal := a.enter(id, response)
	if refusal != nil {
		return *refusal
	}
	defer a.sent()
	begin := Begin{RequestID: id, ContentType: r.Header["content-type"]}
	switch r.Header[modeHeader] {
	case "":
	case "streaming":
		begin.Streamed = true
	default:
		begin.ErrorType = "Runtime.InvalidResponseModeHeader"
		if err := a.whole(begin, nil); err != nil {
			return endedAnswer()
		}
		return refuse(400, "InvalidFunctionResponseMode", "Invalid function response mode")
	}
	most := int64(MaxPayload)
	if i.Streaming { // whatever the mode: not all runtimes that stream say it
		most = a.o.MaxStreamed
	}
	return a.stream(r, begin, most)
}

// respondError is POST invocation/ID/error.
func (a *API) respondError(r *http1.Request, id string) http1.Answer {
	if _, refusal := a.enter(id, errorResponse); refusal != nil {
		return *refusal
	}
	defer a.sent()
	begin := Begin{RequestID: id, ContentType: r.Header["content-type"], ErrorType: errorType(r.Header[errorTypeHeader])}
	if begin.ContentType != causeType {
		return a.stream(r, begin, MaxPayload)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, MaxPayload+1))
	if err != nil || len(body) > MaxPayload {
		return a.broken(begin, false, err, MaxPayload)
	}
	begin.ContentType = "application/json"
	if body, err = withoutCause(body); err != nil {
		begin.ContentType, body = "application/octet-stream", []byte(`"Invalid error body"`)
	}
	if err := a.whole(begin, body); err != nil {
		return endedAnswer()
	}
	return accepted()
}

// withoutCause leaves of an error what its caller gets.
func withoutCause(body []byte) ([]byte, error) {
	var f fault
	if err := json.Unmarshal(body, &f); err != nil {
		return nil, err
	}
	return json.Marshal(f)
}

// whole tells the sink of an answer that is there already.
func (a *API) whole(b Begin, body []byte) error {
	return a.tell(func() error {
		err := a.o.Sink.Begin(b)
		if err == nil && len(body) > 0 {
			err = a.o.Sink.Data(body)
		}
		if err == nil {
			err = a.o.Sink.End(End{})
		}
		return err
	})
}

// stream gives the sink an answer as it comes, and what its trailers say.
func (a *API) stream(r *http1.Request, begin Begin, most int64) http1.Answer {
	if r.Length > most {
		return a.broken(begin, false, nil, most)
	}
	if err := a.tell(func() error { return a.o.Sink.Begin(begin) }); err != nil {
		return endedAnswer()
	}
	size := int64(copySize)
	if r.Length >= 0 {
		size = min(size, r.Length+1)
	}
	buf := make([]byte, size)
	for total := int64(0); ; {
		n, err := r.Body.Read(buf)
		if total += int64(n); total > most {
			return a.broken(begin, true, nil, most)
		}
		if n > 0 {
			if err := a.tell(func() error { return a.o.Sink.Data(buf[:n]) }); err != nil {
				return endedAnswer()
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.broken(begin, true, err, most)
		}
	}
	if err := a.tell(func() error { return a.o.Sink.End(trailers(r.Trailer)) }); err != nil {
		return endedAnswer()
	}
	return accepted()
}

// trailers are the end of an answer as the runtime tells it, in either mode.
func trailers(h http1.Header) End {
	given := h[errorTypeHeader]
	if given == "" {
		return End{}
	}
	end := End{ErrorType: errorType(given)}
	body, err := base64.StdEncoding.DecodeString(h[errorBodyTrailer])
	if err == nil && len(body) <= maxErrorBody {
		end.Body = body
	}
	return end
}

// broken ends an answer that is too long, or was cut short by err. What was cut
// short is told at its end, never as an answer: why it was is not known here.
func (a *API) broken(begin Begin, begun bool, err error, most int64) http1.Answer {
	answer := tooLarge(most)
	end := End{ErrorType: "Function.ResponseSizeTooLarge"}
	text := fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", most)
	if err != nil {
		answer = refuse(400, "TruncatedHTTPRequest", "HTTP request detected as truncated")
		end.ErrorType, text = "Runtime.TruncatedResponse", "Response payload ended before it was whole."
		if !begun {
			begun = true
			_ = a.tell(func() error { return a.o.Sink.Begin(begin) }) // its error comes again with End
		}
	}
	body, jsonErr := json.Marshal(struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}{end.ErrorType, text})
	if begun {
		end.Body = body
		err = a.tell(func() error { return a.o.Sink.End(end) })
	} else {
		begin.ErrorType, begin.ContentType = end.ErrorType, "application/json"
		err = a.whole(begin, body)
	}
	if errors.Join(err, jsonErr) != nil {
		return endedAnswer()
	}
	return answer
}
