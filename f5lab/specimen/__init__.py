"""How the small F5-TTS, its vocoder and its fine-tune in data/ were made, and the gates that they are held to."""
