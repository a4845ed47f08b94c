package lambdaapi

import (
	"errors"
	"fmt"
	"time"
)

// Kind is an error's name on the wire: "ResourceNotFoundException". As an
// error it is what every error of its kind wraps.
type Kind string

// Errors that come from in front of the service, which its model does not know.
const (
	AccessDeniedException               Kind = "AccessDeniedException"
	ExpiredTokenException               Kind = "ExpiredTokenException"
	IncompleteSignatureException        Kind = "IncompleteSignatureException"
	InvalidSignatureException           Kind = "InvalidSignatureException"
	MethodNotAllowedException           Kind = "MethodNotAllowedException"
	MissingAuthenticationTokenException Kind = "MissingAuthenticationTokenException"
	SerializationException              Kind = "SerializationException"
	UnknownOperationException           Kind = "UnknownOperationException"
	UnrecognizedClientException         Kind = "UnrecognizedClientException"
	ValidationException                 Kind = "ValidationException"
)

// A form says how errors of a kind are written.
type form struct {
	status   int
	message  string // "message" or "Message"
	typed    bool   // has Type: User or Service
	reasoned bool   // has Reason
	retry    bool   // has Retry-After
}

var others = map[Kind]form{
	AccessDeniedException:               {status: 403, message: "Message"},
	ExpiredTokenException:               {status: 403, message: "message"},
	IncompleteSignatureException:        {status: 403, message: "message"},
	InvalidSignatureException:           {status: 403, message: "message"},
	MethodNotAllowedException:           {status: 405, message: "message"},
	MissingAuthenticationTokenException: {status: 403, message: "message"},
	SerializationException:              {status: 400, message: "Message"},
	UnknownOperationException:           {status: 404, message: "message"},
	UnrecognizedClientException:         {status: 403, message: "message"},
	ValidationException:                 {status: 400, message: "message"},
}

// Error makes a kind an error, for errors.Is.
func (k Kind) Error() string { return string(k) }

// Errorf makes an error of the kind with the message that the client reads.
func (k Kind) Errorf(format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// form returns how the kind is written, if it is one.
func (k Kind) form() (form, bool) {
	f, ok := modelled[k]
	if !ok {
		f, ok = others[k]
	}
	return f, ok
}

// Error is an error as a client is told of it.
type Error struct {
	Kind    Kind
	Message string
	// Reason and RetryAfter are for kinds that have them: TooManyRequestsException.
	Reason     string
	RetryAfter time.Duration
}

// Error gives kind and message.
func (e *Error) Error() string { return string(e.Kind) + ": " + e.Message }

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Code gives the kind's name, as any error may that WriteError is to write.
func (e *Error) Code() string { return string(e.Kind) }

// asError finds what a client may be told of err. An error of another package says
// its kind by a method Code, and its message by one called Message, if it has
// such. What remains is nobody's business outside.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		if _, known := e.Kind.form(); known {
			return e
		}
	}
	if c, ok := errors.AsType[coded](err); ok {
		if _, known := Kind(c.Code()).form(); known {
			return &Error{Kind: Kind(c.Code()), Message: c.Message()}
		}
	}
	return ServiceException.Errorf("An error occurred and the request cannot be processed.")
}

// coded are errors of packages that do not know this one.
type coded interface {
	error
	Code() string
	Message() string
}
