"""Engine drivers: llama.cpp as a child process, and any OpenAI-compatible upstream by URL."""
