"""The ground every room stands on: messages, sampling options, errors, the clock."""
