package sigv4

import "fmt"

// Error is a refusal that the client may read.
type Error struct{ code, message string }

// Error gives name and text.
func (e *Error) Error() string { return e.code + ": " + e.message }

// Code is the error's name on the wire: InvalidSignatureException. The status
// of all is 403.
func (e *Error) Code() string { return e.code }

// Message is the text for the client.
func (e *Error) Message() string { return e.message }

func invalid(format string, args ...any) error {
	return &Error{code: "InvalidSignatureException", message: fmt.Sprintf(format, args...)}
}

func incomplete(format string, args ...any) error {
	return &Error{code: "IncompleteSignatureException", message: fmt.Sprintf(format, args...)}
}

func unrecognized() error {
	return &Error{code: "UnrecognizedClientException", message: "The security token included in the request is invalid."}
}
